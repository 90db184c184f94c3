"""What all clients share: the served devices, who computes on them, the memory on offer, the cache, the counts.

It must not know a client's requests: those are `session.py`'s.
"""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyggml.backend.base import Backend, Device, Kind, Plan
from pyggml.backend.host import host_memory
from pyggml.errors import ComputeError, DeviceError
from pyggml_rpc.cache import WeightCache
from pyggml_rpc.memory import SHARE, Ledger
from pyggml_rpc.wire import Command

if TYPE_CHECKING:
    from pyggml_rpc.session import Session


CLOSE_TIMEOUT = 2.0  # seconds
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

    def __init__(self, device: Device, n_threads: int | None, ledger: Ledger) -> None:
        self.device = device
        self.ledger = ledger
        self._n_threads = n_threads
        self._backend: Backend | None = None
        self._computing = threading.Lock()
        self._state = threading.Lock()
        self._running: Session | None = None

    @property
    def backend(self) -> Backend:
        with self._state:
            if self._backend is None:
                self._backend = self.device.open(self._n_threads)
            return self._backend

    def compute(self, plan: Plan, session: "Session") -> None:
        """Run it when the device is free. Raises ComputeError, also when the session ended while it waited."""
        backend = self.backend
        with self._computing:
            with self._state:
                if session.gone:
                    raise ComputeError("the client is gone")
                self._running = session
            try:
                backend.compute(plan)
                backend.synchronize()
            finally:
                with self._state:
                    self._running = None

    def abort(self, session: "Session") -> None:
        """End the computation if it is this session's."""
        with self._state:
            if self._running is session and self._backend is not None:
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
        if self._computing.acquire(timeout=CLOSE_TIMEOUT):
            try:
                with self._state:
                    if self._backend is not None:
                        self._backend.close()
                        self._backend = None
            finally:
                self._computing.release()


class Server:
    """Devices offered to any number of clients.

    `n_threads` goes to each device's backend (None: the backend's choice). `memory_limit` is what to offer of each
    device in bytes (None: what is free, less a margin). `client_share`: what one client may take of what the others have
    left. `cache` keeps weights that clients ask to keep.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        n_threads: int | None = None,
        memory_limit: int | None = None,
        client_share: float = SHARE,
        cache: WeightCache | None = None,
    ) -> None:
        if not devices:
            raise DeviceError("a server needs at least one device")
        self.slots = []
        for device in devices:
            here = device.kind is Kind.CPU
            ledger = Ledger(device.memory, limit=memory_limit, share=client_share, lazy=here)
            self.slots.append(Slot(device, n_threads, ledger))
        # what clients cause in this machine's own memory: graphs, frames on their way to a GPU
        hosts = [slot.ledger for slot in self.slots if slot.device.kind is Kind.CPU]
        self.host = hosts[0] if hosts else Ledger(host_memory, share=client_share)
        self.cache = cache
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
