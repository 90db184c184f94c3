"""Schedules made from a few layers are those made from all, word for word; where they would not be, all are built.

Graphs of tiny models, and random graphs of layers of up to three kinds that share things in all the ways that a model may.
Each part of the proof has a mutant: without it some of these come out wrong.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few_compare import assert_same
from few_model import opened
from mutants import Mutant, mutate
from random_layers import Layer, compare, compare_many
from tiny_model import write_llama

import pyggml.backend.few_layers as few_layers_module
import pyggml.backend.repeats as repeats_module
import pyggml.backend.scheduler as scheduler_module
import pyggml.graph as graph_module
from pyggml.backend import cpu
from pyggml.backend.cpu import CPUDevice, CPUPlan
from pyggml.backend.repeats import PlaceWatch
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import IrregularError, Leafs, LeafSpans
from pyggml.lowering.cpu import Builder
from pyggml.lowering.layers import LayerBuilder
from pyggml.tensor import Tensor

F32, F16, Q8_0, I32, I64 = GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.I32, GGMLType.I64


# ---- models

NARROW = {f"blk.{i}.{key}.weight": np.full(shape, 0.01, np.float16)
          for i in (2, 5, 6) for key, shape in (("attn_v", (32, 64)), ("ffn_down", (64, 96)))}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    # of the file, of the context, how many layers are built for a prompt, and where all tokens have outputs
    "dense": ({}, {}, [5, 3]),
    "biases": ({"biases": True, "tied": False}, {}, [5, 3]),
    "experts": ({"n_expert": 4}, {}, [3, 2]),
    "rope factors": ({"rope_freqs": True}, {}, [5, 3]),
    "longrope": (
        {"long_factors": True, "strings": {"llama.rope.scaling.type": "longrope"}, "floats": {"llama.rope.scaling.factor": 4.0}},
        {}, [5, 3],
    ),
    "transposed V": ({"head_k": 24, "head_v": 8}, {"flash_attn": False}, [5, 3]),
    "F32 cache": ({}, {"type_k": F32, "type_v": F32}, [5, 3]),
    "quantised cache": ({"head_k": 64, "head_v": 64}, {"type_k": Q8_0, "type_v": GGMLType.Q4_0}, [3, 2]),
    "two kinds": ({"replace": NARROW}, {}, [7, 7]),
}  # fmt: skip
SHAPES = [(5, 256, 1), (1, 256, 1), (2, 256, 2), (3, 512, 1), (7, 512, 7), (8, 512, 3), (4, 256, 0), (1, 512, 0)]


@pytest.mark.parametrize("name", MODELS)
def test_models_are_lowered_from_a_few_layers_as_from_all(name: str, tmp_path: Path) -> None:
    file, options, built = MODELS[name]
    with opened(write_llama(tmp_path / "m.gguf", n_layer=9, **file), **options) as few:
        for shape in SHAPES:
            few.schedule(*shape)  # the first of its form is built whole
            assert_same(few.schedule(*shape)[1], few.whole(*shape)[1])
        few.asked.clear()
        few.schedule(6, 512, 1)
        few.schedule(6, 512, 6)
        assert [len(layers) for layers in few.asked] == built


@pytest.mark.parametrize("n_layer", [1, 2, 3, 4])
def test_models_of_few_layers(n_layer: int, tmp_path: Path) -> None:
    with opened(write_llama(tmp_path / "m.gguf", n_layer=n_layer)) as few:
        for shape in SHAPES * 2:
            assert_same(few.schedule(*shape)[1], few.whole(*shape)[1])


def test_results_are_the_same_bits(tmp_path: Path) -> None:
    with opened(write_llama(tmp_path / "m.gguf", n_layer=9)) as few:
        context = few.context
        want = [context.decode(tokens) for tokens in ([3, 1, 4, 1, 5], [9], [2], [6, 5])]
        context.clear()
        context._schedules.make = lambda shape, _: few.schedule_of(shape)  # type: ignore[method-assign]
        context._schedules.clear()
        few.schedule(1, 256, 1)
        got = [context.decode(tokens) for tokens in ([3, 1, 4, 1, 5], [9], [2], [6, 5])]
        assert len({layers for layers in few.asked if len(layers) < 9}) >= 2
        assert all((a == b).all() for a, b in zip(want, got, strict=True))


def test_after_the_compute_buffer_has_grown(tmp_path: Path) -> None:
    with opened(write_llama(tmp_path / "m.gguf", n_layer=9)) as few:
        few.schedule(1, 256, 1)
        schedule, whole = few.schedule(1, 256, 1)[1], few.whole(1, 256, 1)[1]
        schedule.bind()
        size = few.context.scheduler.sizes[0]
        few.context.scheduler.reserve([size + 4096])
        assert_same(schedule, whole)


def test_an_error_names_the_layer(tmp_path: Path) -> None:
    with opened(write_llama(tmp_path / "m.gguf", n_layer=9)) as few:
        few.schedule(2, 256, 2)
        built, schedule = few.schedule(2, 256, 2)
        tokens = next(one.tensor for one in built.inputs if one.tensor.name == "inp_tokens")
        whole = few.whole(2, 256, 2)[1]
        schedule.bind()
        whole.bind()
        a, b = schedule.splits[0].plan, whole.splits[0].plan
        assert isinstance(a, CPUPlan) and isinstance(b, CPUPlan)
        told = 0
        for i in range(len(a.steps)):
            name, _, rest = a.name(i).partition(" (in layer ")
            if rest:
                layer, stands = re.fullmatch(r"(\d), for which layer (\d) stands\)", rest).groups()  # type: ignore[union-attr]
                name = re.sub(rf"(-|_l){stands}\b", rf"\g<1>{layer}", name)
                told += 1
            assert name == b.name(i)
        assert told > len(a.steps) / 2
        schedule.set_input(tokens, np.array([0, 1 << 20], np.int32))
        with pytest.raises(ComputeError, match=r"^GET_ROWS 'inp_embd': row index 1048576"):
            schedule.run()


# ---- random layers


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    backend = CPUDevice().open(2)
    made = Scheduler([backend])
    yield made
    made.close()
    backend.close()


def test_random_layers_come_out_as_if_all_were_built(scheduler: Scheduler) -> None:
    compare_many(scheduler, assert_same, 250)


# ---- mutants


class AnyPlace(PlaceWatch):
    """Wrong: the compute buffer is taken to be the same before and after each layer."""

    def check(self, places: object) -> None:
        pass


class AnyMemory(LayerBuilder):
    """Wrong: what a layer makes is taken to be its own."""

    def remember(self, key: Any, value: Any, source: Tensor) -> None:
        Builder.remember(self, key, value, source)
        self._relied.made(key, self._layer)


class AllOwn(Leafs):
    """Wrong: what a layer lists is taken to be its own."""

    def __init__(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        super().__init__(tensors)
        self.own = self.apart = [{id(t) for t in of_layer} for of_layer in tensors]


class OwnIsApart(Leafs):
    """Wrong: two names of the same memory are taken for two memories."""

    def __init__(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        super().__init__(tensors)
        self.apart = self.own


class AnyFind(LayerBuilder):
    """Wrong: what a layer finds is taken to be there for those that it stands for."""

    def remembered(self, key: Any) -> Any:
        return Builder.remembered(self, key)


class NoEnd(LayerBuilder):
    """Wrong: work memory may end in any layer."""

    def _find_pieces(self) -> None:
        whole = self._pattern
        self._pattern = replace(whole, first=0)
        with contextlib.suppress(IrregularError):
            super()._find_pieces()
        self._pattern = whole


class LikeTheOthers(LayerBuilder):
    """Wrong: the last layer's work memory is taken to lie where that of those before it does."""

    def _correct_last(self, table: object, first: int, layer: int, arena: int) -> None:
        pass


class Still(LeafSpans):
    """Wrong: all layers read the same weights."""

    def find(self, t: Tensor) -> int | None:
        return None


N = ("norm", 0)
MUTANTS: list[tuple[Any, str, type, list[Layer], list[int]]] = [
    (scheduler_module, "PlaceWatch", AnyPlace, [[("product", 0, F32)]], [0] * 9),
    (cpu, "LayerBuilder", AnyMemory, [[N], [N, ("rope", 1, 0)]], [0] + [1] * 8),
    (few_layers_module, "Leafs", AllOwn, [[N], [N, ("common", 1)]], [0] + [1] * 8),
    (few_layers_module, "Leafs", OwnIsApart, [[N], [N, ("alias", 1)]], [0] + [1] * 8),
    (cpu, "LayerBuilder", AnyFind, [[N, ("common", 1)], [N, ("common", 1), ("store common", 2)]], [0] + [1] * 8),
    (cpu, "LayerBuilder", NoEnd, [[N, ("rope", 1, 0)], [N]], [0] * 6 + [1] * 4),
    (cpu, "LayerBuilder", LikeTheOthers, [[("rope", 0, 0), ("product", 1, Q8_0)]], [0] * 9),
    (graph_module, "LeafSpans", Still, [[("product", 0, F32)]], [0] * 9),
]


ANY_READER: Mutant = (repeats_module, "_kinds", "at is not None or ", "")


def test_layers_that_read_different_results_of_earlier_ones_are_not_alike(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer 0 makes one of the two, layer 1 the other; layer 2 is the first that reads the one again, layer 4 the other."""
    kinds, order = [[("shared", 0, 1)], [("shared", 0, 0)]], [0, 1, 0, 0, 1, 0, 0]
    compare(scheduler, kinds, order, assert_same)
    mutate(monkeypatch, ANY_READER)
    with pytest.raises(AssertionError):
        compare(scheduler, kinds, order, assert_same)


@pytest.mark.parametrize(
    ("module", "name", "mutant", "kinds", "order"), MUTANTS, ids=[mutant.__name__ for _, _, mutant, _, _ in MUTANTS]
)
def test_a_wrong_form_is_noticed(
    module: Any, name: str, mutant: type, kinds: list[Layer], order: list[int], scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Layers of these kinds, in this order; the right form passes."""
    compare(scheduler, kinds, order, assert_same)
    monkeypatch.setattr(module, name, mutant)
    with pytest.raises(AssertionError):
        compare(scheduler, kinds, order, assert_same)
