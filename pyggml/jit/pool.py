"""Who compiles what: jobs, the threads that hand them to compiling processes, and agreement with other programs.

Owns the queue. A thread here waits for a process each and holds no lock meanwhile: kernels that are there can be linked
and run while others are compiled.

Programs that start together share the work: whoever compiles a kernel holds a lock on one byte of the folder's lock
file, at a place that the kernel's name decides, and the others compile something else or wait. They wait PATIENCE
seconds at most, for the holder may be stopped (Ctrl-Z); then they compile it themselves.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from pyggml.errors import CacheError, DeviceError
from pyggml.jit import compiling, store
from pyggml.jit.compiling import Code
from pyggml.jit.spec import Spec
from pyggml.jit.worker import Worker, WorkerDied, surroundings

MAX_WORKERS = 4
JOBS_A_WORKER = 3  # with fewer left, starting another process takes longer than it saves
IDLE = 20.0  # seconds that a process is kept without work
KERNELS_A_WORKER = 100  # then a fresh one takes over: LLVM does not give memory back
PATIENCE = 20.0
LOOK_AGAIN = 0.1  # seconds between looks at what another program compiles


class Job:
    """A kernel on its way. `done` is set at the end, and `error` before it if that went wrong."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.done = threading.Event()
        self.error: Exception | None = None
        self.not_before = 0.0
        self.busy_since: float | None = None  # when another program was first found compiling it


class Claim(Enum):
    """Who compiles a kernel: this program, another one, or nobody knows as there are no locks."""

    OURS, BUSY, NO_LOCKS = range(3)


# ---- agreement with other programs


@functools.cache
def _lock_file(path: str) -> int | None:
    """A descriptor that stays open: closing any descriptor of the file would let go all locks of this process."""
    try:
        return store.folder().lock_file("lock")
    except CacheError:
        return None


def _place(spec: Spec) -> int:
    return int.from_bytes(hashlib.sha256(repr(tuple(spec)).encode()).digest()[:6], "little")


@contextlib.contextmanager
def claim_kernel(spec: Spec) -> Iterator[Claim]:
    """Ask to be the only program that compiles a kernel. Where there are no locks, two may compile the same."""
    try:
        import fcntl

        file = _lock_file(str(store.folder().path))
    except (ImportError, CacheError):
        file = None
    if file is None:
        yield Claim.NO_LOCKS
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(spec))
    except (BlockingIOError, PermissionError):
        yield Claim.BUSY
        return
    except OSError:  # a file system without locks
        yield Claim.NO_LOCKS
        return
    try:
        yield Claim.OURS
    finally:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_UN, 1, _place(spec))


# ---- the queue


class Pool:
    """`submit` specs, wait for the jobs. `deliver(spec, code, compiled)` gets each kernel, from a thread of the pool;
    `compiled` is False for one that another program made meanwhile."""

    def __init__(self, deliver: Callable[[Spec, Code, bool], None]) -> None:
        self._deliver = deliver
        self._change = threading.Condition()
        self._jobs: collections.deque[Job] = collections.deque()
        self._pending: dict[Spec, Job] = {}
        self._threads = 0
        self._workers: set[Worker] = set()
        self._closed = False
        atexit.register(self.close)

    def submit(self, specs: Sequence[Spec]) -> list[Job]:
        """Have these compiled, in about this order; the jobs of those that already are on their way among them."""
        with self._change:
            jobs = []
            for spec in specs:
                job = self._pending.get(spec)
                if job is None:
                    job = self._pending[spec] = Job(spec)
                    self._jobs.append(job)
                jobs.append(job)
            wanted = min(-(-len(self._jobs) // JOBS_A_WORKER), MAX_WORKERS, _cpus())
            while self._threads < wanted:
                self._threads += 1
                threading.Thread(target=self._work, name="pyggml-compiling", daemon=True).start()
            self._change.notify_all()
            return jobs

    def close(self) -> None:
        """End the compiling processes, whatever they do."""
        with self._change:
            self._closed = True
            self._jobs.clear()
            workers = list(self._workers)
            self._change.notify_all()
        for worker in workers:
            worker.kill()

    def _take(self) -> Job | None:
        """The next job; None after IDLE seconds without one, when the thread must end."""
        with self._change:
            end = time.monotonic() + IDLE
            while not self._closed:
                now = time.monotonic()
                for i, job in enumerate(self._jobs):
                    if job.not_before <= now:
                        del self._jobs[i]
                        return job
                left = end - now
                if self._jobs:
                    left = min(left, min(job.not_before for job in self._jobs) - now)
                elif left <= 0:
                    break
                self._change.wait(max(left, 0.01))
            self._threads -= 1
            return None

    def _work(self) -> None:
        """A thread's life: with a compiling process of its own, started when it is first needed."""
        hand = _Hand()
        while (job := self._take()) is not None:
            try:
                with claim_kernel(job.spec) as claim:
                    code = store.load(job.spec)  # another program may have been quicker
                    made = code is None
                    if code is None and claim is Claim.BUSY and self._wait_on(job):
                        continue
                    if code is None:
                        code = self._compile(hand, job.spec)
                        store.save(job.spec, code)
                self._deliver(job.spec, code, made)
            except Exception as error:
                job.error = error
            self._finish(job)
        self._dismiss(hand)

    def _wait_on(self, job: Job) -> bool:
        """Put the job back for a moment, unless another program has had it for too long."""
        now = time.monotonic()
        job.busy_since = job.busy_since or now
        if now - job.busy_since > PATIENCE:
            return False
        job.not_before = now + LOOK_AGAIN
        with self._change:
            self._jobs.append(job)
        return True

    def _finish(self, job: Job) -> None:
        with self._change:
            self._pending.pop(job.spec, None)
        job.done.set()

    def _compile(self, hand: _Hand, spec: Spec) -> Code:
        """In the thread's own process; in this one where there can be no other."""
        worker = hand.worker
        if worker is not None and (worker.compiled >= KERNELS_A_WORKER or worker.made_for != surroundings()):
            self._dismiss(hand)
        why: WorkerDied | None = None
        for _ in range(2):  # one that dies may have been killed for memory: a fresh one gets a chance
            if hand.worker is None and not self._start(hand):
                return compiling.compile_spec(spec)
            assert hand.worker is not None
            try:
                return hand.worker.compile(spec)
            except WorkerDied as died:
                why = died
                self._dismiss(hand)
                if self._closed:
                    break
        raise DeviceError(f"kernel {spec.label}: {why}")

    def _start(self, hand: _Hand) -> bool:
        worker = hand.worker = Worker.start()
        if worker is None:
            return False
        with self._change:
            self._workers.add(worker)
        if self._closed:
            worker.kill()
        return True

    def _dismiss(self, hand: _Hand) -> None:
        if hand.worker is not None:
            with self._change:
                self._workers.discard(hand.worker)
            hand.worker.close()
            hand.worker = None


@dataclass
class _Hand:
    """The compiling process of a thread, if it has one."""

    worker: Worker | None = None


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
