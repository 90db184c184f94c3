"""The threads that run CPU plans. Owns their start and end, and the memory that they share.

The workers live inside compiled code (kernels/cpu/executor.py) without the GIL; a run costs no Python on their side.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from pyggml import jit
from pyggml.errors import ComputeError, DeviceError
from pyggml.kernels.cpu import executor
from pyggml.lowering.table import StepTable, aligned_bytes
from pyggml.steps import POOL, STATUS, THREAD

WAIT_US = 40.0  # within a run: about what it costs to sleep and to be woken
IDLE_US = 50.0  # between runs, before the time slice is given away
IDLE_YIELDS = 2000  # then so often (about 1 ms), before sleeping
MOST_READ = 8  # plans that are over and whose records may still be read, before it is asked which really are


@functools.cache
def _spins_in(us: float) -> int:
    """How often a waiting thread looks within `us` microseconds."""
    spin, n = jit.function(executor.SPIN), 200
    times = []
    for _ in range(5):
        start = time.perf_counter()
        spin(n)
        times.append(time.perf_counter() - start)
    return max(1, int(us * 1e-6 / (max(min(times), 1e-9) / n)))


class ThreadPool:
    """`n_threads` threads, the caller of `run` being one of them. One run at a time.

    `sibling`: another pool that runs the same plans, never at the same time; both report through one status record.
    """

    def __init__(self, n_threads: int, sibling: ThreadPool | None = None) -> None:
        if not 1 <= n_threads <= 1024:
            raise DeviceError(f"CPU: {n_threads} threads: must be 1 to 1024")
        self.n_threads = n_threads
        self._memory = aligned_bytes(POOL.itemsize + n_threads * THREAD.itemsize)
        self._pool = self._memory[: POOL.itemsize].view(POOL)
        self._each = self._memory[POOL.itemsize :].view(THREAD)
        self._address = self._memory.ctypes.data
        self._status: NDArray[Any] = aligned_bytes(STATUS.itemsize).view(STATUS) if sibling is None else sibling._status
        self._pool["n_threads"] = n_threads
        self._run = jit.function(executor.RUN)
        self._threads: list[threading.Thread] = []
        self._read: dict[int, StepTable] = {}  # by address: plans that are over, and that a worker may still read
        self._lock = threading.Lock()
        self._closed = False
        if n_threads > 1:
            crowded = n_threads > len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else False
            self._pool["spins"] = _spins_in(WAIT_US) // (8 if crowded else 1)
            self._pool["idle_spins"], self._pool["idle_yields"] = _spins_in(IDLE_US), IDLE_YIELDS
            self._start(jit.function(executor.WORKER))

    def _start(self, worker: Callable[..., Any]) -> None:
        sem_init = ctypes.CDLL(None).sem_init
        for i in range(self.n_threads):
            at = self._each[i : i + 1].ctypes.data + THREAD.fields["semaphore"][1]  # type: ignore[index]
            if sem_init(ctypes.c_void_p(at), 0, 0):
                raise DeviceError("CPU: this system has no unnamed semaphores; use one thread")
        for i in range(1, self.n_threads):
            # daemon: at interpreter exit nobody waits for a thread that sleeps in compiled code
            args = (worker, self._address, i, (self._memory, self._status, self._read))
            thread = threading.Thread(target=_work, args=args, daemon=True, name=f"pyggml-{i}")
            thread.start()
            self._threads.append(thread)
        dismissal = weakref.finalize(self, _dismiss, self._pool, self._address)
        dismissal.atexit = False
        self._dismissal = dismissal

    @property
    def status_address(self) -> int:
        return int(self._status.ctypes.data)

    def run(self, table: StepTable, alone: bool = False) -> None:
        """Run a plan; `alone`: by the caller, without waking the others.

        Raises ComputeError when it was aborted, IndexFault when a kernel met a row number that its tensor does not have.
        """
        with self._lock:
            if self._closed:
                raise ComputeError("CPU: the backend is closed")
            self._status["abort"] = 0
            self._run(self._address, table.address, alone)
            self._read[table.address] = table
            if len(self._read) > MOST_READ:
                self._drop()
            outcome = int(self._status["abort"][0])
        if outcome == 1:
            raise ComputeError("CPU: aborted")
        if outcome == 2:
            raise IndexFault(*(int(self._status[f][0]) for f in ("step", "row", "limit")))

    def _drop(self) -> None:
        """Forget the records that no worker can be reading; one that enters from now on finds no plan, or the next."""
        inside = set(self._each["inside"].tolist())
        for address in [a for a in self._read if a not in inside]:
            del self._read[address]

    def trim(self) -> None:
        """Give back the records of runs that are over, unless one is under way."""
        if self._lock.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lock.release()

    def abort(self) -> None:
        """Let a run that is under way end soon: what is not begun is not computed."""
        self._status["abort"] = 1

    def close(self) -> None:
        """End the threads; twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._threads:
                self._dismissal()
        for thread in self._threads:
            thread.join()


def _work(worker: Callable[..., Any], address: int, ith: int, memory: object) -> None:
    """A worker's life. `memory` is what it waits on and reads: it must outlive a pool that nobody closed."""
    worker(address, ith)


def _dismiss(pool: NDArray[Any], address: int) -> None:
    """Let the workers leave, when the pool is closed or forgotten."""
    pool["quit"] = 1
    jit.function(executor.DISMISS)(address)


class IndexFault(ComputeError):
    """A kernel met a row number that its tensor does not have."""

    def __init__(self, step: int, row: int, limit: int) -> None:
        super().__init__(f"step {step}: row {row} of {limit}")
        self.step, self.row, self.limit = step, row, limit
