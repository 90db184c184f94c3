"""What all clients share: the served devices, who computes on them, the memory on offer, the cache, the counts.

It must not know a client's requests: those are `session.py`'s.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyggml.backend.base import Backend, Device, Kind, Plan
from pyggml.backend.host import host_memory
from pyggml.errors import ComputeError, DeviceError
from pyggml_rpc.cache import WeightCache
from pyggml_rpc.comm import Join
from pyggml_rpc.memory import SHARE, Ledger
from pyggml_rpc.preload import Preload
from pyggml_rpc.turns import Turns
from pyggml_rpc.wire import NEWEST, Command, Protocol

if TYPE_CHECKING:
    from pyggml_rpc.session import Session


CLOSE_TIMEOUT = 2.0  # seconds
PATIENCE = 1.0  # seconds that others wait for one client's graph before they compute beside it
MAX_BACKENDS = 16  # of a device
LOWERINGS = 2  # graphs that are made ready at once, each of another client
COMPILING = 3.0  # seconds after which one is taken to wait for the compiler, and keeps nobody else waiting
MAX_BUFFERS = 1 << 15  # of all clients; each may be a mapping, of which Linux gives a process 65,530


Elsewhere = Callable[[Backend], AbstractContextManager[Plan]]
"""A graph made ready for a backend, for as long as the context lasts."""


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


@dataclass
class _Run:
    """A computation, on which of a device's backends, and since when."""

    number: int
    backend: Backend
    since: float
    overdue: bool = False


class Slot:
    """One served device: who computes on it, and who holds how much of its memory.

    One client computes at a time. A device whose turn takes long gets another backend for the next client, and nobody waits
    for the end of a graph that may take hours: on a CPU with threads of its own, between which the system shares the cores;
    a GPU takes slices of both graphs by turns.
    """

    def __init__(
        self, device: Device, n_threads: int | None, ledger: Ledger, graph_timeout: float | None = None
    ) -> None:
        self.device = device
        self.ledger = ledger
        several = device.kind is Kind.CPU or device.shares_plans
        self.turns = Turns(overstay=PATIENCE if several else None, most=MAX_BACKENDS)
        self._n_threads = n_threads
        self._graph_timeout = graph_timeout
        self._state = threading.Lock()
        self._communicating: Session | None = None
        self._backends: list[Backend] = []
        self._running: dict[Session, _Run] = {}

    @property
    def backend(self) -> Backend:
        """The one that graphs are made ready for."""
        with self._state:
            return self._opened(0)

    def _opened(self, number: int) -> Backend:
        if number == len(self._backends):
            self._backends.append(self.device.open(self._n_threads))
        return self._backends[number]

    def compute(self, plan: Plan, session: "Session", elsewhere: Elsewhere) -> None:
        """Run it when it is the client's turn; `elsewhere` makes the plan for another backend than `backend`. Raises
        ComputeError, also when the session ended while it waited."""
        self.turns.take(session.owner, lambda: session.gone)
        try:
            run = self._begin(session)
            try:
                if run.number == 0 or self.device.shares_plans:
                    self._run(run, plan)
                else:
                    with elsewhere(run.backend) as other:
                        self._run(run, other)
            finally:
                with self._state:
                    del self._running[session]
        finally:
            self.turns.give(session.owner)

    def _begin(self, session: "Session") -> _Run:
        with self._state:
            if session.gone:  # asked inside, where `abort` sees that it runs
                raise ComputeError("the client is gone")
            taken = {run.number for run in self._running.values()}
            number = next(i for i in range(MAX_BACKENDS) if i not in taken)
            run = self._running[session] = _Run(number, self._opened(number), time.monotonic())
            return run

    def _run(self, run: _Run, plan: Plan) -> None:
        try:
            run.backend.compute(plan)
            run.backend.synchronize()
        except ComputeError:
            if not run.overdue:
                raise
            raise ComputeError(f"it computed for more than {self._graph_timeout:g} s") from None

    def abort(self, session: "Session") -> None:
        """End the computation if it is this session's, and its wait for a turn."""
        with self._state:
            run = self._running.get(session)
            if run is not None:
                run.backend.abort()
        self.turns.wake()

    def end_overdue(self) -> None:
        """End what computes for longer than a graph may; to be called again and again."""
        assert self._graph_timeout is not None
        with self._state:
            for run in self._running.values():
                if time.monotonic() - run.since > self._graph_timeout:
                    run.overdue = True
                    run.backend.abort()

    def reserve(self, session: "Session | None") -> bool:
        """Have the device's one communicator be this session's, unless it is another's; None: nobody's any more."""
        with self._state:
            if session is not None and self._communicating is not None:
                return False
            self._communicating = session
            return True

    def trim(self) -> None:
        """After heavy clients: end the backends that nobody needs any more, and empty the first one."""
        with self._state:
            for backend in self._backends:
                backend.trim()
            taken = {run.number for run in self._running.values()}
            while len(self._backends) > 1 and len(self._backends) - 1 not in taken:
                self._backends.pop().close()

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
        until = time.monotonic() + CLOSE_TIMEOUT
        while self.turns.n_running and time.monotonic() < until:
            time.sleep(0.01)
        with self._state:
            for backend in self._backends if not self._running else ():
                backend.close()
            self._backends.clear()


class Server:
    """Devices offered to any number of clients.

    `n_threads` goes to each device's backend (None: the backend's choice). `memory_limit` is what to offer of each
    device in bytes (None: what is free, less a margin). `client_share`: what one client may take of what the others have
    left. `graph_timeout`: seconds that one graph may compute (None: any time). `cache` keeps weights that clients ask to
    keep, `preload` has those that all may be handed. `protocol` is what it speaks: a client does not say which version it wants.
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
        preload: Preload | None = None,
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
        self.preload = preload
        self.protocol = protocol
        self.join: Join | None = None  # another server, to add up tensors with; the listener's
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
