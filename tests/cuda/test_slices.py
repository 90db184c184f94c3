"""Long plans on a GPU: handed over by slices, so that they can be ended and others get at the GPU. On a GPU that only takes
notes, and whose time passes when it is waited for.
"""

import threading
from collections.abc import Callable

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
from cuda_recording import RecordingGPU, place
from mutants import Mutant, assert_caught
from op_cases import F32

from pyggml import ops
from pyggml.backend.cuda.device import MOST_LAUNCHES, SLICE, CudaBackend, CudaDevice
from pyggml.backend.cuda.plan import REPLAY_SECONDS, CudaPlan
from pyggml.errors import ComputeError
from pyggml.graph import build_forward
from pyggml.tensor import Tensor


class TimedGPU(RecordingGPU):
    """Each launch takes `cost` seconds of its time; `ahead` is how much was handed over at most, `idle` how long it had nothing
    to do while a plan ran."""

    cost = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.now = self.busy_until = self.ahead = self.idle = 0.0
        self.n_waits = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def launch(self, *args) -> None:
        super().launch(*args)
        if self.captured is None:
            self.idle += max(self.now - self.busy_until, 0.0)
            self.busy_until = max(self.now, self.busy_until) + self.cost
            self.ahead = max(self.ahead, self.busy_until - self.now)

    def event(self) -> list[float]:
        return [0.0]

    def record(self, event: list[float]) -> None:
        event[0] = self.busy_until

    def wait(self, event: list[float]) -> None:
        self.n_waits += 1
        self.meanwhile()
        self.now = max(self.now, event[0])

    def synchronize(self) -> None:
        self.now = max(self.now, self.busy_until)


class Run:
    """A plan of `n` launches of `cost` seconds each."""

    def __init__(self, n: int, cost: float) -> None:
        self.gpu = TimedGPU()
        self.device = CudaDevice(self.gpu)
        self.device.clock = lambda: self.gpu.now
        self.gpu.cost, self.n = cost, n
        t = Tensor(F32, (32, 4))
        for _ in range(n):
            t = ops.scale(t, 2.0)
        place(self.device, t)
        self.backend = self.device.open()
        self.plan = self.backend.plan(build_forward([t]))

    def __call__(self) -> list[str]:
        """What the GPU was asked for."""
        self.gpu.log.clear()
        self.backend.compute(self.plan)
        return list(self.gpu.log)


@pytest.mark.parametrize("cost", [0.0001, 0.001, 0.02, 0.05, 1.0])
def test_little_is_handed_over_at_once(cost: float) -> None:
    """Two slices, and what one launch takes; from the second run on its length is known from the beginning."""
    run = Run(200, cost)
    assert run() == ["launch unary-scale"] * 200
    assert run.gpu.ahead <= max(2 * SLICE, 4 * cost) + 1e-9
    assert run.gpu.now == pytest.approx(200 * cost) and run.gpu.idle < 0.01 * cost, "it waited for us"
    if 200 * cost <= REPLAY_SECONDS:
        return
    run.gpu.ahead = 0.0
    assert run() == ["launch unary-scale"] * 200 and run.gpu.ahead <= 2 * max(SLICE, cost) + 1e-9


def test_a_quick_plan_costs_few_waits_and_becomes_a_graph() -> None:
    run = Run(200, 5e-6)
    run()
    assert run.gpu.n_waits < 12 and run.plan.slice > 50
    assert run() == [*["note unary-scale"] * 200, "replay 200"] and run() == ["replay 200"]


def test_a_long_plan_becomes_none() -> None:
    """A graph can neither be ended nor shared. What was long once may be quick again."""
    run = Run(20, REPLAY_SECONDS / 10)
    for _ in range(3):
        assert run() == ["launch unary-scale"] * 20
    run.gpu.cost = REPLAY_SECONDS / 100
    run()
    assert run()[-1] == "replay 20"


def test_slices_grow_to_a_bound() -> None:
    run = Run(1100, 1e-7)
    run()
    assert run.plan.slice == MOST_LAUNCHES


def test_an_aborted_plan_ends() -> None:
    run = Run(300, 0.02)

    def meanwhile() -> None:
        if run.gpu.now > 0.5:
            run.backend.abort()

    run.gpu.meanwhile = meanwhile
    with pytest.raises(ComputeError, match=r"^aborted$"):
        run()
    assert 0.5 < run.gpu.now < 0.5 + 4 * SLICE and len(run.gpu.log) < 40
    run.gpu.meanwhile = lambda: None
    assert len(run()) == 300, "and the next run is whole"


def test_others_get_at_the_gpu_meanwhile() -> None:
    run, got = Run(50, 0.02), []

    def meanwhile() -> None:
        thread = threading.Thread(target=lambda: got.append(run.device.lock.acquire(timeout=1)))
        thread.start()
        thread.join()
        if not got[-1]:
            run.gpu.meanwhile = lambda: None

    run.gpu.meanwhile = meanwhile
    run.device.lock = Lock()
    run()
    assert len(got) > 10 and all(got)


class Lock:
    """A lock of any thread's, which whoever only looks whether it is free does not keep."""

    def __init__(self) -> None:
        self.inner = threading.RLock()

    def acquire(self, timeout: float) -> bool:
        got = self.inner.acquire(timeout=timeout)
        if got:
            self.inner.release()
        return got

    def __enter__(self) -> None:
        self.inner.acquire()

    def __exit__(self, *_: object) -> None:
        self.inner.release()


def test_two_plans_of_two_backends_beside_each_other() -> None:
    """A short one is done long before the long one that began first."""
    run = Run(150, 0.02)
    other, t = run.device.open(), Tensor(F32, (32, 4))
    for _ in range(3):
        t = ops.scale(t, 3.0)
    place(run.device, t)
    short = run.backend.plan(build_forward([t]))
    done: list[float] = []

    def meanwhile() -> None:
        if not done and run.gpu.now > 1.0:
            run.gpu.meanwhile = lambda: None
            other.compute(short)  # what another backend has planned
            done.append(run.gpu.now)

    run.gpu.meanwhile = meanwhile
    assert len(run()) == 150 + 3
    assert done and done[0] < 1.0 + 6 * SLICE and run.gpu.now == pytest.approx(153 * 0.02)
    assert run.device.shares_plans


def test_marks_are_used_again() -> None:
    run = Run(5, 0.03)
    run()
    marks = list(run.backend._events)
    run.backend.close()
    assert len(marks) == 2 and run.device.events == marks
    run.backend = run.device.open()
    run()
    assert not run.device.events and {id(e) for e in run.backend._events} == {id(e) for e in marks}


# ---- wrong variants

SLICES, REPLAY = (CudaBackend, "_launch_by_slices"), (CudaPlan, "replay")


def little() -> None:
    test_little_is_handed_over_at_once(0.02)


def slower() -> None:
    """Launches that suddenly take a hundred times as long."""
    run = Run(600, 0.0005)
    run()
    run.gpu.cost = 0.05
    run.gpu.ahead = 0.0
    before = run.plan.slice
    run()
    assert run.plan.slice == 1 < before


def test_slices_shrink() -> None:
    slower()


MUTANTS: dict[str, tuple[Mutant, Callable[[], None]]] = {
    "nobody waits for slices": ((*SLICES, "number >= 2", "False"), little),
    "each slice is waited for at once": ((*SLICES, "number >= 2", "number >= 1"), little),
    "slices do not shrink": ((*SLICES, "plan.slice // 2", "plan.slice"), slower),
    "slices do not grow": ((*SLICES, "2 * plan.slice", "plan.slice"), test_a_quick_plan_costs_few_waits_and_becomes_a_graph),
    "slices grow without bound": ((*SLICES, "min(2 * plan.slice, MOST_LAUNCHES)", "2 * plan.slice"), test_slices_grow_to_a_bound),
    "nobody looks at the abort flag": ((*SLICES, " and not self.aborted", ""), test_an_aborted_plan_ends),
    "the lock is held": ((*SLICES, "gpu.wait(event)", "device.lock.__enter__(); gpu.wait(event); device.lock.__exit__()"), test_others_get_at_the_gpu_meanwhile),
    "every plan becomes a graph": ((*REPLAY, "self.seconds <= REPLAY_SECONDS", "True"), test_a_long_plan_becomes_none),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    assert_caught(monkeypatch, *MUTANTS[mutant])
