"""What all clients share: the served devices, who computes on them, the memory on offer, the cache, the counts.

It must not know a client's requests: those are `session.py`'s.
"""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyggml.backend.base import Backend, Device, Plan
from pyggml.errors import ComputeError, DeviceError
from pyggml_rpc.cache import WeightCache
from pyggml_rpc.wire import Command

if TYPE_CHECKING:
    from pyggml_rpc.session import Session


CLOSE_TIMEOUT = 2.0  # seconds


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
    """One served device: its backend, who computes on it, and how much of its memory is lent."""

    def __init__(self, device: Device, n_threads: int | None, limit: int | None) -> None:
        self.device = device
        self._n_threads = n_threads
        self._limit = limit
        self._backend: Backend | None = None
        self._computing = threading.Lock()
        self._state = threading.Lock()
        self._running: Session | None = None
        self._used = 0

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

    def reserve(self, size: int) -> bool:
        """Count `size` bytes as lent unless that is more than there is to offer."""
        offered = self.memory()[1]
        with self._state:
            if self._used + size > offered:
                return False
            self._used += size
            return True

    def release(self, size: int) -> None:
        with self._state:
            self._used -= size
            assert self._used >= 0

    @property
    def used(self) -> int:
        return self._used

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total) that clients may count on."""
        free, total = self.device.memory()
        if self._limit is not None:
            total = min(total, self._limit)
        return min(free, max(0, total - self._used)), total

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
    device in bytes (None: all of it). `cache` keeps weights that clients ask to keep.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        n_threads: int | None = None,
        memory_limit: int | None = None,
        cache: WeightCache | None = None,
    ) -> None:
        if not devices:
            raise DeviceError("a server needs at least one device")
        self.slots = [Slot(device, n_threads, memory_limit) for device in devices]
        self.cache = cache
        self.counters = Counters()

    def close(self) -> None:
        for slot in self.slots:
            slot.close()
