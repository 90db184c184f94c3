"""What all clients share: the served devices, who computes on them, the memory on offer, the cache, the counts.

It must not know a client's requests: those are `session.py`'s.
"""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyggml.backend.base import Backend, Device, Kind, Plan
from pyggml.backend.host import host_memory
from pyggml.errors import ComputeError, DeviceError
from pyggml_rpc.cache import WeightCache
from pyggml_rpc.memory import SHARE, Ledger
from pyggml_rpc.turns import Turns
from pyggml_rpc.wire import NEWEST, Command, Protocol

if TYPE_CHECKING:
    from pyggml_rpc.session import Session


CLOSE_TIMEOUT = 2.0  # seconds
LOWERINGS = 2  # graphs that are made ready at once, each of another client
COMPILING = 3.0  # seconds after which one is taken to wait for the compiler, and keeps nobody else waiting
MAX_BUFFERS = 1 << 15  # of all clients; each may be a mapping, of which Linux gives a process 65,530


class Counters:
    """Requests and bytes of their bodies by command, over all clients; of SET_TENSOR the data alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = dict.fromkeys(Command, 0)
        self.bytes = dict.fromkeys(Command, 0)
        self.refused = 0

    def add(self, command: Command, size: int) -> None:
        with self._lock:
            self.requests[command] += 1
            self.bytes[command] += size

    def add_refused(self) -> None:
        with self._lock:
            self.refused += 1


class Slot:
    """One served device: its backend, who computes on it, and who holds how much of its memory."""

    def __init__(
        self, device: Device, n_threads: int | None, ledger: Ledger, graph_timeout: float | None = None
    ) -> None:
        self.device = device
        self.ledger = ledger
        self.turns = Turns()
        self._n_threads = n_threads
        self._graph_timeout = graph_timeout
        self._backend: Backend | None = None
        self._state = threading.Lock()
        self._running: Session | None = None
        self._since = 0.0
        self._overdue = False

    @property
    def backend(self) -> Backend:
        with self._state:
            if self._backend is None:
                self._backend = self.device.open(self._n_threads)
            return self._backend

    def compute(self, plan: Plan, session: "Session") -> None:
        """Run it when it is the client's turn. Raises ComputeError, also when the session ended while it waited."""
        backend = self.backend
        self.turns.take(session.owner, lambda: session.gone)
        try:
            with self._state:
                if session.gone:  # asked inside, where `abort` sees that it runs
                    raise ComputeError("the client is gone")
                self._running, self._since, self._overdue = session, time.monotonic(), False
            try:
                backend.compute(plan)
                backend.synchronize()
            except ComputeError:
                if not self._overdue:
                    raise
                raise ComputeError(f"it computed for more than {self._graph_timeout:g} s") from None
            finally:
                with self._state:
                    self._running = None
        finally:
            self.turns.give(session.owner)

    def abort(self, session: "Session") -> None:
        """End the computation if it is this session's, and its wait for a turn."""
        with self._state:
            if self._running is session and self._backend is not None:
                self._backend.abort()
        self.turns.wake()

    def end_overdue(self) -> None:
        """End the computation if it takes longer than a graph may; to be called again and again."""
        with self._state:
            late = self._graph_timeout is not None and time.monotonic() - self._since > self._graph_timeout
            if late and self._running is not None and self._backend is not None:
                self._overdue = True
                self._backend.abort()

    @property
    def used(self) -> int:
        """Bytes that clients hold."""
        return self.ledger.held

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total) on offer, to all clients together."""
        _, total = self.ledger.offer(None)
        return max(0, total - self.ledger.held), total

    def close(self) -> None:
        """A computation that does not end when it is aborted keeps its threads, which end with the process."""
        owner = object()
        try:
            self.turns.take(owner, lambda: False, CLOSE_TIMEOUT)
        except ComputeError:
            return
        with self._state:
            if self._backend is not None:
                self._backend.close()
                self._backend = None
        self.turns.give(owner)


class Server:
    """Devices offered to any number of clients.

    `n_threads` goes to each device's backend (None: the backend's choice). `memory_limit` is what to offer of each
    device in bytes (None: what is free, less a margin). `client_share`: what one client may take of what the others have
    left. `graph_timeout`: seconds that one graph may compute (None: any time). `cache` keeps weights that clients ask to
    keep. `protocol` is what it speaks: a client does not say which version it wants.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        n_threads: int | None = None,
        memory_limit: int | None = None,
        client_share: float = SHARE,
        graph_timeout: float | None = None,
        cache: WeightCache | None = None,
        protocol: Protocol = NEWEST,
    ) -> None:
        if not devices:
            raise DeviceError("a server needs at least one device")
        self.slots = []
        for device in devices:
            here = device.kind is Kind.CPU
            ledger = Ledger(device.memory, limit=memory_limit, share=client_share, lazy=here)
            self.slots.append(Slot(device, n_threads, ledger, graph_timeout))
        # what clients cause in this machine's own memory: graphs, frames on their way to a GPU
        hosts = [slot.ledger for slot in self.slots if slot.device.kind is Kind.CPU]
        self.host = hosts[0] if hosts else Ledger(host_memory, share=client_share)
        self.graph_timeout = graph_timeout
        self.lowering = Turns(LOWERINGS, overstay=COMPILING)
        self.cache = cache
        self.protocol = protocol
        self.counters = Counters()
        self._buffers = 0
        self._lock = threading.Lock()

    def count_buffers(self, more: int) -> bool:
        """Count so many more (or fewer) buffers, unless there were too many: the system has a limit on mappings."""
        with self._lock:
            if self._buffers + more > MAX_BUFFERS:
                return False
            self._buffers += more
            return True

    def close(self) -> None:
        for slot in self.slots:
            slot.close()
