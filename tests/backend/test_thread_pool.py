"""The threads that walk plans: barriers, sleeping, waking, aborting, ending."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import until

from pyggml import jit
from pyggml.backend.thread_pool import MOST_READ, IndexFault, StepTable, ThreadPool
from pyggml.errors import ComputeError, DeviceError
from pyggml.jit import Spec
from pyggml.steps import STEP

SUPPORT = Path(__file__).parents[1] / "support"
THREADS = (1, 2, 3, 5)
Array = NDArray[Any]


@contextmanager
def pool_of(n_threads: int) -> Iterator[ThreadPool]:
    pool = ThreadPool(n_threads)
    try:
        yield pool
    finally:
        pool.close()


class Steps:
    """A plan of steps of primitive_kernels.steps with the memory that they count in. Each step has a part for every thread,
    unless `parts` says otherwise."""

    def __init__(self, pool: ThreadPool) -> None:
        self.pool = pool
        self.counters = np.zeros((2, 8), np.int64)
        self.records: list[Array] = []
        self.table: StepTable | None = None

    def add(self, kernel: str, *ints: int, sync: bool = False, parts: int = 0) -> "Steps":
        record = np.zeros(1, STEP)
        record["kernel"] = jit.address(Spec("primitive_kernels.steps", kernel))
        record["sync"], record["index"], record["parts"] = sync, len(self.records), parts or self.pool.n_threads
        record["ints"][0, : len(ints)] = ints
        record["scratch"] = self.counters[0].ctypes.data, self.counters[1].ctypes.data
        self.records.append(record)
        return self

    def run(self, alone: bool = False) -> None:
        if self.table is None:
            self.table = StepTable(len(self.records))
            self.table.steps[:] = np.concatenate(self.records)
            self.table.sealed(self.pool.status_address)
        self.pool.run(self.table, alone)


@pytest.mark.parametrize("n_threads", THREADS)
def test_many_tiny_runs(n_threads: int) -> None:
    runs = 3000 if n_threads <= (os.cpu_count() or 1) else 300
    with pool_of(n_threads) as pool:
        steps = Steps(pool).add("count").add("count", sync=True).add("count")
        for _ in range(runs):
            steps.run()
        assert steps.counters[0].tolist() == [3 * runs] * n_threads + [0] * (8 - n_threads)


def neighbours_seen(n_threads: int, sync: bool) -> bool:
    """Whether each part finds what its neighbour, which is late, wrote in the step before."""
    rounds = 20
    with pool_of(n_threads) as pool:
        steps = Steps(pool)
        for _ in range(rounds):
            steps.add("spin", 2000, n_threads - 1).add("count", sync=sync).add("neighbour", sync=sync)
        for _ in range(10):
            steps.counters[:] = 0
            steps.run()
            if set(steps.counters[1, :n_threads].tolist()) != {rounds * (rounds + 1) // 2}:
                return False
    return True


@pytest.mark.parametrize("n_threads", THREADS)
def test_steps_wait_where_one_says_so(n_threads: int) -> None:
    assert neighbours_seen(n_threads, sync=True)


@contextmanager
def running(steps: Steps) -> Iterator[threading.Thread]:
    """Another thread runs them; "hold" is let go at the end."""
    thread = threading.Thread(target=steps.run)
    thread.start()
    try:
        yield thread
    finally:
        steps.counters[1, 6] = 1
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.parametrize("sync", [False, True])
def test_a_part_that_is_late_holds_up_only_what_waits_for_it(sync: bool) -> None:
    with pool_of(2) as pool:
        steps = Steps(pool).add("hold", parts=8, sync=sync).add("spin", 1, 0)
        with running(steps):
            until(lambda: steps.counters[0].tolist() == [0] + [1] * 7)  # by one thread alone
            if sync:
                time.sleep(0.1)
            else:
                until(lambda: bool(steps.counters[1, 7] == 1))
            assert steps.counters[1, 7] == (not sync)
        assert (steps.counters[0].tolist(), steps.counters[1, 7]) == ([1] * 8, 1)


def test_a_small_run_after_an_aborted_one() -> None:
    """A worker that is late to see that a run was aborted must not walk on in it when the next one has begun, nor in
    memory that was given back."""
    end, aborted = time.monotonic() + 60, 0
    with pool_of(4) as pool:
        while aborted < 30 and time.monotonic() < end:
            long, short = Steps(pool), Steps(pool).add("count", sync=True, parts=3)
            for _ in range(400):
                long.add("spin", 300, 0, sync=True)

            def compute(long: Steps = long) -> None:
                with contextlib.suppress(ComputeError):
                    long.run()

            thread = threading.Thread(target=compute)
            thread.start()
            until(lambda long=long: bool(long.counters[1, 7] > 0))  # type: ignore[misc]
            pool.abort()
            for i in range(20):
                short.run(alone=i % 3 > 0)
            assert short.counters[0, :4].tolist() == [20, 20, 20, 0]
            thread.join(timeout=30)
            assert not thread.is_alive()
            aborted += int(long.counters[1, 7] < 400)
            assert len(pool._read) <= MOST_READ
    assert aborted > 0


@pytest.mark.parametrize("n_threads", [2, 5])
def test_sleeping_and_waking(n_threads: int) -> None:
    with pool_of(n_threads) as pool:
        sleepers = pool._each["asleep"][1:]
        steps = Steps(pool).add("count", sync=True).add("count")
        for _ in range(20):
            until(lambda: bool(sleepers.all()))
            steps.run()
            steps.run()  # while they are awake, or on their way to sleep
        assert steps.counters[0, :n_threads].tolist() == [80] * n_threads


@pytest.mark.parametrize("pause", [0.0, 0.0005, 0.0012, 0.003])
def test_runs_that_begin_as_threads_fall_asleep(pause: float) -> None:
    with pool_of(3) as pool:
        steps = Steps(pool).add("count")
        for i in range(100):
            time.sleep(pause * (0.8 + 0.004 * i))
            steps.run()
        assert steps.counters[0, :3].tolist() == [100] * 3


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_abort(n_threads: int) -> None:
    with pool_of(n_threads) as pool:
        pool.abort()  # nothing is under way: this is forgotten
        short, long = Steps(pool).add("count", sync=True).add("count"), Steps(pool)
        for _ in range(3000):
            long.add("spin", 20000, 0, sync=True)
        short.run()
        failed: list[str] = []

        def compute() -> None:
            try:
                long.run()
            except ComputeError as error:
                failed.append(str(error))

        thread = threading.Thread(target=compute)
        thread.start()
        until(lambda: bool(long.counters[1, 7] > 0))
        pool.abort()
        thread.join(timeout=30)
        assert not thread.is_alive() and failed == ["CPU: aborted"]
        assert 0 < long.counters[1, 7] < 3000
        short.run()
        assert short.counters[0].tolist() == [4] * n_threads + [0] * (8 - n_threads)


@pytest.mark.parametrize(("n_threads", "who"), [(1, 0), (2, 0), (2, 1), (5, 3)])
def test_a_fault_names_its_place(n_threads: int, who: int) -> None:
    with pool_of(n_threads) as pool:
        steps = Steps(pool).add("count").add("fault", 0, who, sync=True).add("count")
        for _ in range(3):
            with pytest.raises(IndexFault, match="step 1: row 7 of 5") as caught:
                steps.run()
            assert (caught.value.step, caught.value.row, caught.value.limit) == (1, 7, 5)
        assert steps.counters[0, :n_threads].tolist() == [3] * n_threads  # none went on
        last = Steps(pool).add("fault", 0, who)  # without a barrier behind it
        with pytest.raises(IndexFault):
            last.run()
        good = Steps(pool).add("count")
        good.run()
        assert good.counters[0, :n_threads].tolist() == [1] * n_threads


@pytest.mark.parametrize("n_threads", THREADS)
def test_close_ends_the_threads(n_threads: int) -> None:
    pool = ThreadPool(n_threads)
    steps = Steps(pool).add("count")
    threads = list(pool._threads)
    assert len(threads) == n_threads - 1 and all(t.is_alive() for t in threads)
    if n_threads == 3:
        until(lambda: bool(pool._each["asleep"][1:].all()))
    pool.close()
    assert not any(t.is_alive() for t in threads)
    pool.close()
    with pytest.raises(ComputeError, match="closed"):
        steps.run()
    assert not steps.counters.any()


@pytest.mark.parametrize("n_threads", [0, -1, 1025])
def test_impossible_numbers_of_threads(n_threads: int) -> None:
    with pytest.raises(DeviceError, match=f"{n_threads} threads"):
        ThreadPool(n_threads)


def at_once(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=w) for w in work]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert not any(t.is_alive() for t in threads)


def test_two_pools_at_once() -> None:
    with pool_of(2) as one, pool_of(3) as other:
        plans = [Steps(t).add("count", sync=True).add("count", sync=True).add("count") for t in (one, other)]
        at_once(*([lambda p=p: [p.run() for _ in range(200)] for p in plans]))  # type: ignore[misc]
        assert [p.counters[0, :3].tolist() for p in plans] == [[600, 600, 0], [600, 600, 600]]


def test_one_pool_for_two_callers() -> None:
    with pool_of(2) as pool:
        plans = [Steps(pool).add("count", sync=True).add("count") for _ in range(2)]
        at_once(*([lambda p=p: [p.run() for _ in range(200)] for p in plans]))  # type: ignore[misc]
        assert [p.counters[0, :2].tolist() for p in plans] == [[400, 400]] * 2


ENDINGS = {
    "idle": "",
    "asleep": "time.sleep(0.3)",
    "running": "threading.Thread(target=long.run, daemon=True).start(); time.sleep(0.1)",
    "an error": "raise SystemExit(0)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_with_a_pool_alive(ending: str) -> None:
    script = f"""
import sys, threading, time; sys.path[:0] = [{str(SUPPORT)!r}, {str(Path(__file__).parent)!r}]
from test_thread_pool import Steps, ThreadPool
pool = ThreadPool(3)
steps, long = Steps(pool).add("count"), Steps(pool).add("spin", 1 << 40, 1)
steps.run()
print("done", flush=True)
{ENDINGS[ending]}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_a_forgotten_pool_ends_its_threads() -> None:
    """Nobody closes it: its workers leave, and the memory that they wait on outlives it."""
    pool = ThreadPool(3)
    threads = list(pool._threads)
    time.sleep(0.05)  # asleep by now
    del pool
    gc.collect()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
