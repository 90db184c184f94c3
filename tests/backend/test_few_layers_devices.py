"""Layers over several devices: a few of each device's are enough, and come out as if all were built. Random layers on GPUs that
take notes, on servers and on the CPU; the devices' own parts of the proof are tested beside them."""

from collections.abc import Iterator

import pytest
from few_compare import assert_same
from layer_devices import DEVICES, scheduler_of
from mutants import Mutant, mutate
from pyggml_rpc import repeated
from random_layers import Layer, compare, compare_many

from pyggml.backend.scheduler import Schedule, Scheduler
from pyggml.dtypes import GGMLType


@pytest.fixture(scope="module", params=DEVICES)
def scheduler(request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    with scheduler_of(request.param) as made:
        yield made


def test_random_layers_come_out_as_if_all_were_built(scheduler: Scheduler) -> None:
    compare_many(scheduler, assert_same, 80, cut=True)


P = ("product", 0, GGMLType.F32)


@pytest.mark.parametrize("cut", [5, -5])
def test_a_few_layers_of_each_are_enough(scheduler: Scheduler, cut: int) -> None:
    assert compare(scheduler, [[P]], [0] * 10, assert_same, cut)


def test_where_one_devices_layers_are_not_alike_those_of_the_other_are(scheduler: Scheduler) -> None:
    kinds = [[P, *[("norm", 0)] * i, ("add", 1, 1), P] for i in range(4)]
    assert compare(scheduler, kinds, [0, 1, 2, 3, *[0] * 7], assert_same, 4)


def test_a_plan_has_no_nodes_beyond_its_last_layers(scheduler: Scheduler) -> None:
    """The layers before the cut end in one that has fewer nodes than the one before it."""
    kinds = [[("rope", 0, 0)], [("store", 0), ("store", 0), ("rope", 0, 1), ("rope", 0, 0)]]
    compare(scheduler, kinds, [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0], assert_same, -2)


BOTH: Mutant = (Schedule, "_watch", "home.repeats is not None", "False")


def test_two_runs_on_one_device_are_not_mixed_up(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers without products have no device of their own: the CPU computes all of them, or a GPU."""
    compare(scheduler, [[]], [0] * 10, assert_same, 5)
    mutate(monkeypatch, BOTH)
    with pytest.raises(AssertionError):
        compare(scheduler, [[]], [0] * 10, assert_same, 5)


OTHERS_COUNT_ONCE: Mutant = (Schedule, "_uses", "_reads(split, split.repeats)", "_reads(split, None)")
ANY_COPY: Mutant = (
    repeated._Parts, "_check", "if id(root) not in mine:", "if id(root) not in mine and root.buffer.usage is not Usage.COMPUTE:"
)  # fmt: skip
OF_SHARED = ("product of shared", 0, GGMLType.F16)
KINDS = [[OF_SHARED, ("store", 0)], [("store shared", 0), OF_SHARED]]


@pytest.mark.parametrize(
    ("mutant", "kinds", "order", "cut"),
    [
        (OTHERS_COUNT_ONCE, [[("as half", 4, 0), ("store common", 7), P], [("shared", 7, 0)]], [0, *[1] * 7], -6),
        (ANY_COPY, KINDS, [1, 0, 1, 0, 1, 0, 1, 0, 1, 2, 0], 3),
    ],
    ids=["layers of another device read it", "a copy that several layers read is one"],
)
def test_records_of_what_comes_from_another_device(
    mutant: Mutant, kinds: list[Layer], order: list[int], cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduler_of("two devices of a server") as scheduler:
        compare(scheduler, kinds, order, assert_same, cut)
        mutate(monkeypatch, mutant)
        with pytest.raises(AssertionError):
            compare(scheduler, kinds, order, assert_same, cut)
