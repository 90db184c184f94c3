"""Graphs for a server, made from a few layers, are those made from all, field for field but for the names of nodes. Each part of
the proof has a mutant."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from few_compare import assert_same
from few_model import opened
from mutants import Mutant, mutate
from pyggml_rpc import repeated
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from random_layers import Layer, compare, compare_many
from tiny_model import write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.graph import LeafSpans

F32, F16, Q8_0 = GGMLType.F32, GGMLType.F16, GGMLType.Q8_0


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with Listener(Server([CPUDevice()], n_threads=1), port=0) as listener:
        yield listener.endpoint


MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({}, {}),
    "biases": ({"biases": True, "tied": False}, {}),
    "experts": ({"n_expert": 4}, {}),
    "rope factors": ({"rope_freqs": True}, {}),
    "transposed V": ({"head_k": 24, "head_v": 8}, {"flash_attn": False}),
    "quantised cache": ({"head_k": 64, "head_v": 64}, {"type_k": Q8_0, "type_v": GGMLType.Q4_0}),
}
SHAPES = [(5, 256, 1), (1, 256, 1), (2, 256, 2), (3, 512, 1), (7, 512, 7), (4, 256, 0)]


@pytest.mark.parametrize("name", MODELS)
def test_models_are_sent_from_a_few_layers_as_from_all(name: str, tmp_path: Path, endpoint: str) -> None:
    file, options = MODELS[name]
    path = write_llama(tmp_path / "m.gguf", n_layer=9, **file)
    with opened(path, devices_from_spec(endpoint), **options) as few:
        for shape in SHAPES:
            few.schedule(*shape)
            assert_same(few.schedule(*shape)[1], few.whole(*shape)[1])
        few.asked.clear()
        few.schedule(6, 512, 1)
        few.schedule(6, 512, 6)
        assert all(len(layers) <= 5 for layers in few.asked) and len(few.asked) == 2, few.asked


def test_results_are_the_same_bits(tmp_path: Path, endpoint: str) -> None:
    with opened(write_llama(tmp_path / "m.gguf", n_layer=9), devices_from_spec(endpoint)) as few:
        context, texts = few.context, ([3, 1, 4, 1, 5], [9], [2], [6, 5])
        context._schedules.make = lambda shape, _: few.whole_of(shape)  # type: ignore[method-assign]
        want = [context.decode(tokens) for tokens in texts]
        context.clear()
        context._schedules.make = lambda shape, _: few.schedule_of(shape)  # type: ignore[method-assign]
        context._schedules.clear()
        for shape in SHAPES[:2]:
            few.schedule(*shape)
        few.asked.clear()
        got = [context.decode(tokens) for tokens in texts]
        assert few.asked and max(map(len, few.asked)) < 9
        assert all((a == b).all() for a, b in zip(want, got, strict=True))


def test_layers_over_two_servers(tmp_path: Path, endpoint: str) -> None:
    path = write_llama(tmp_path / "m.gguf", n_layer=14)
    with Listener(Server([CPUDevice()], n_threads=1), port=0) as other:
        for n_gpu_layers in (99, 9):
            devices = devices_from_spec(f"{endpoint},{other.endpoint}")
            with opened(path, devices, n_gpu_layers=n_gpu_layers) as few:
                for shape in SHAPES:
                    few.schedule(*shape)
                    few.asked.clear()
                    found = few.schedule(*shape)[1]
                    built = min(map(len, few.asked))
                    assert_same(found, few.whole(*shape)[1])
                    assert built < 14, few.asked


# ---- random layers


@pytest.fixture(scope="module")
def scheduler(endpoint: str) -> Iterator[Scheduler]:
    (device,) = devices_from_spec(endpoint)
    backends = [device.open(), CPUDevice().open(1)]
    made = Scheduler(backends)
    yield made
    made.close()
    for backend in backends:
        backend.close()


def test_random_layers_come_out_as_if_all_were_built(scheduler: Scheduler) -> None:
    compare_many(scheduler, assert_same, 150)


# ---- mutants


class Still(LeafSpans):
    """Wrong: all layers read the same weights."""

    def find(self, t: Any) -> int | None:
        return None


NUMBERS, USES, PLACE = (repeated._Moved, "numbers"), (repeated, "_uses"), (repeated, "_place")
P, S = ("product", 0, F32), ("shared", 0, 0)
MUTANTS: dict[str, tuple[Mutant, list[Layer], list[int]]] = {
    "all read the first one's input": ((*NUMBERS, "last - first[order[previous]] + start[previous]", "few"), [[P]], [0] * 9),
    "results have the numbers of the few": ((*NUMBERS, "few - first[own] + start[at]", "few"), [[P]], [0] * 9),
    "the few count as readers": ((*USES, "copies[layer] - 1", "0"), [[S], [P, ("shared", 1, 0)], [S]], [0] + [1] * 8 + [2]),
    "all have the first one's weights": ((*PLACE, 'records["data"][at] += places[layers, numbers, 1] - places[stand, numbers, 1]', "pass"), [[P]], [0] * 9),
    "all have the first one's names": ((*PLACE, "names[layers, numbers][whole]", "names[stand, numbers][whole]"), [[P]], [0] * 9),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_form_is_noticed(name: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant, kinds, order = MUTANTS[name]
    assert compare(scheduler, kinds, order, assert_same), "a few layers are enough"
    mutate(monkeypatch, mutant)
    with pytest.raises(AssertionError):
        compare(scheduler, kinds, order, assert_same)
