"""A client's computations: here, or on threads of their own while its next commands are read.

Owns the threads, one for each device that is computed on beside others, and what became of their last computations. A
client with memory of one device has nothing that could be done meanwhile but small questions: its own thread computes,
as to wake another and hear back takes a tenth of a millisecond. One computation at a time for each device: the next one
waits. A failure shows to whoever waits next.
"""

import logging
import queue
import threading
from collections.abc import Callable

from pyggml.errors import PyggmlError

log = logging.getLogger("pyggml.rpc")

AGAIN = 0.05  # seconds; an abort may come just before the computation that it is meant for

Job = Callable[[], None]


class _Worker:
    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.idle = threading.Event()
        self.idle.set()
        self._failure: BaseException | None = None
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def start(self, job: Job) -> None:
        self.idle.clear()
        self._jobs.put(job)

    def check(self) -> None:
        """Raises what the last job raised, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def end(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as failure:
                self._failure = failure
            del job
            self.idle.set()


class Running:
    """Used by one thread, save for `active`. `watched`: somebody else aborts what is computed when the client leaves, so
    that the thread which would read of it may compute."""

    def __init__(self, peer: str, watched: bool = True) -> None:
        self._peer = peer
        self._watched = watched
        self._workers: dict[int, _Worker] = {}

    @property
    def active(self) -> bool:
        """Whether another thread computes."""
        return not all(worker.idle.is_set() for worker in list(self._workers.values()))

    def start(self, device: int, job: Job, alone: bool) -> None:
        """After `wait` for this device. `alone`: the client can compute on no other device; when this returns it is done.
        Raises what the job does then."""
        if alone and self._watched:
            job()
            return
        worker = self._workers.get(device)
        if worker is None:
            worker = self._workers[device] = _Worker(f"compute {self._peer}")
        assert worker.idle.is_set()
        worker.start(job)

    def check(self) -> None:
        """Raises the failure of a computation that is over."""
        for worker in self._workers.values():
            if worker.idle.is_set():
                worker.check()

    def wait(self, device: int | None = None) -> None:
        """Until nothing is computed on the device (None: on any). Raises the failure of what was."""
        for number, worker in self._workers.items():
            if device is None or number == device:
                worker.idle.wait()
                worker.check()

    def close(self, abort: Callable[[], None]) -> None:
        """End all computations and their threads. What a refused one raises is nobody's concern any more."""
        for worker in self._workers.values():
            while not worker.idle.wait(AGAIN):
                abort()
            worker.end()
            try:
                worker.check()
            except (PyggmlError, MemoryError) as error:
                log.debug("%s: %s", self._peer, error)
            except Exception:
                log.exception("%s: a fault of this server, after its client had left", self._peer)
        self._workers.clear()
