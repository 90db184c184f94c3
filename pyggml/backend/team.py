"""The threads that run CPU plans. Owns their start and end, and the memory that they share; knows no plan's content.

The workers live inside compiled code (kernels/cpu/executor.py) without the GIL; a run costs no Python on their side.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from pyggml import jit
from pyggml.errors import ComputeError, DeviceError
from pyggml.kernels.cpu import executor
from pyggml.steps import SLEEPER, STATUS, TEAM


class Team:
    """`n_threads` threads, the caller of `run` being one of them. One run at a time.

    `beside`: another team that runs the same plans, never at the same time; both report through one status record.
    """

    def __init__(self, n_threads: int, beside: Team | None = None) -> None:
        if not 1 <= n_threads <= 1024:
            raise DeviceError(f"CPU: {n_threads} threads, 1 to 1024 are possible")
        self.n_threads = n_threads
        size = TEAM.itemsize + n_threads * SLEEPER.itemsize
        raw = np.zeros(size + 64, np.uint8)
        self._memory = raw[-raw.ctypes.data % 64 :][:size]
        self._team = self._memory[: TEAM.itemsize].view(TEAM)
        self._address = self._memory.ctypes.data
        self._status: np.ndarray[Any, Any] = np.zeros(1, STATUS) if beside is None else beside._status
        self._team["n_threads"] = n_threads
        self._team["status"] = self._status.ctypes.data
        self._run = jit.function(executor.RUN)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False
        if n_threads > 1:
            self._start(jit.function(executor.WORKER))

    def _start(self, worker: Callable[..., Any]) -> None:
        sem_init = ctypes.CDLL(None).sem_init
        for i in range(1, self.n_threads):
            at = self._address + TEAM.itemsize + (i - 1) * SLEEPER.itemsize + SLEEPER.fields["semaphore"][1]  # type: ignore[index]
            if sem_init(ctypes.c_void_p(at), 0, 0):
                raise DeviceError("CPU: this system has no unnamed semaphores; use one thread")
        for i in range(1, self.n_threads):
            # daemon: at interpreter exit nobody waits for a thread that sleeps in compiled code
            args = (worker, self._address, i, (self._memory, self._status))
            thread = threading.Thread(target=_work, args=args, daemon=True, name=f"pyggml-{i}")
            thread.start()
            self._threads.append(thread)
        dismissal = weakref.finalize(self, _dismiss, self._team, self._address, self.n_threads)
        dismissal.atexit = False
        self._dismissal = dismissal

    @property
    def status_address(self) -> int:
        return int(self._status.ctypes.data)

    def run(self, steps: int, count: int, alone: bool = False) -> None:
        """Run `count` step records at address `steps`; `alone`: by the caller, without waking the others.

        Raises ComputeError when it was aborted, IndexFault when a kernel met a row number that its tensor does not have.
        """
        with self._lock:
            if self._closed:
                raise ComputeError("CPU: the backend is closed")
            self._status["abort"] = 0
            self._team["steps"], self._team["count"] = steps, count
            self._team["n_threads"] = 1 if alone else self.n_threads
            self._run(self._address)
            outcome = int(self._status["abort"][0])
        if outcome == 1:
            raise ComputeError("CPU: aborted")
        if outcome == 2:
            raise IndexFault(*(int(self._status[f][0]) for f in ("step", "row", "limit")))

    def abort(self) -> None:
        """Let a run that is under way end at its next barrier."""
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
    """A worker's life. `memory` is what it waits on: it must outlive a team that nobody closed."""
    worker(address, ith)


def _dismiss(team: np.ndarray[Any, Any], address: int, n_threads: int) -> None:
    """Let the workers leave, when the team is closed or forgotten."""
    team["quit"], team["count"], team["n_threads"] = 1, 0, n_threads
    jit.function(executor.DISMISS)(address)


class IndexFault(ComputeError):
    """A kernel met a row number that its tensor does not have."""

    def __init__(self, step: int, row: int, limit: int) -> None:
        super().__init__(f"step {step}: row {row} of {limit}")
        self.step, self.row, self.limit = step, row, limit
