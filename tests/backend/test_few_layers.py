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
from few_model import FewModel
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import write_llama

import pyggml.backend.few_layers as few_layers_module
import pyggml.backend.scheduler as scheduler_module
import pyggml.graph as graph_module
from pyggml import ops
from pyggml.backend import cpu
from pyggml.backend.base import Usage
from pyggml.backend.cpu import CPUDevice, CPUPlan
from pyggml.backend.few_layers import FewLayers, LayeredGraph
from pyggml.backend.pack import pack
from pyggml.backend.repeats import PlaceWatch
from pyggml.backend.scheduler import Schedule, Scheduler
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import IrregularError, Leafs, LeafSpans, build_forward
from pyggml.lowering.cpu import Builder
from pyggml.lowering.layers import LayerBuilder
from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.tensor import Flag, Tensor

F32, F16, Q8_0, I32, I64 = GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.I32, GGMLType.I64


def words(schedule: Schedule) -> tuple[NDArray[np.int64], int, list[int]]:
    """The records of a plan, with addresses of work memory as distances from its start; bytes of work; of each arena."""
    schedule.bind()
    (split,) = schedule.splits
    assert isinstance(split.plan, CPUPlan)
    arena = split.plan.keep[0]
    start = int(arena.ctypes.data)
    found = split.plan.table.words.copy()
    inside = (found >= start) & (found < start + arena.size)
    found[inside] -= start - 1
    return found, split.plan.nbytes, schedule.sizes


def assert_same(few: Schedule, whole: Schedule) -> None:
    (a, work_a, sizes_a), (b, work_b, sizes_b) = words(few), words(whole)
    assert a.shape == b.shape and (work_a, sizes_a) == (work_b, sizes_b)
    different = np.argwhere(a != b)
    assert not len(different), f"{len(different)} words, the first is word {different[0][1]} of step {different[0][0]}"


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


@contextlib.contextmanager
def opened(path: Path, **options: Any) -> Iterator[FewModel]:
    model = Model.load(path)
    context = Context(model, n_ctx=512, n_ubatch=8, n_threads=2, **options)
    yield FewModel(context)
    context.close()
    model.close()


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

EMBD, TOKENS, CELLS = 32, 3, 8
Layer = list[tuple[Any, ...]]
INSTRUCTION = st.one_of(
    st.tuples(st.just("product"), st.integers(0, 9), st.sampled_from([F32, F16, Q8_0])),
    st.tuples(st.just("norm"), st.integers(0, 9)),
    st.tuples(st.just("add"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("rope"), st.integers(0, 9), st.integers(0, 1)),
    st.tuples(st.just("shared"), st.integers(0, 9), st.integers(0, 1)),
    st.tuples(st.just("as half"), st.integers(0, 9), st.integers(0, 1)),
    st.tuples(st.just("store"), st.integers(0, 9)),
    st.tuples(st.just("cached"), st.integers(0, 9)),
    st.tuples(st.just("wider"), st.integers(0, 9)),
    st.tuples(st.just("common"), st.integers(0, 9)),
    st.tuples(st.just("alias"), st.integers(0, 9)),
    st.tuples(st.just("store common"), st.integers(0, 9)),
)
KINDS = st.lists(st.lists(INSTRUCTION, max_size=6), min_size=1, max_size=3)
SOME = st.lists(st.integers(0, 2), max_size=2)
ORDER = st.tuples(SOME, st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(3, 10), SOME).map(
    lambda drawn: drawn[0] + (drawn[1] * 10)[: drawn[2]] + drawn[3]
)  # mostly they come again


class Layers:
    """A model of layers of these kinds, in this order, with weights of their own."""

    def __init__(self, scheduler: Scheduler, kinds: list[Layer], order: list[int]) -> None:
        self.scheduler = scheduler
        self.layers = [kinds[i % len(kinds)] for i in order]
        self.leafs: list[list[Tensor]] = []
        self.common = Tensor(F16, (EMBD, CELLS))  # all layers read it, and some write it
        for layer in self.layers:
            types = [instruction[2] if instruction[0] == "product" else F32 for instruction in layer]
            weights = [Tensor(dtype, (EMBD, EMBD)) for dtype in types]
            self.leafs.append(
                [*weights, Tensor(F16, (EMBD, CELLS)), Tensor(F32, (EMBD,)), self.common, Tensor(F16, (EMBD, CELLS))]
            )
        self.buffers = pack(
            scheduler.devices[0], [self.common, *(t for leafs in self.leafs for t in leafs[:-2])], Usage.WEIGHTS
        )
        for leafs in self.leafs:  # another name of the same memory
            leafs[-1].buffer, leafs[-1].data = self.common.buffer, self.common.data
        self.asked: list[int] = []
        self.few: FewLayers[None] = FewLayers(scheduler, self.leafs)

    def build(self, layers: Sequence[int]) -> LayeredGraph[None]:
        self.asked.append(len(layers))
        x = Tensor(F32, (EMBD, TOKENS), flags=Flag.INPUT)
        inputs = Tensor(I32, (TOKENS,), flags=Flag.INPUT), Tensor(I64, (TOKENS,), flags=Flag.INPUT)
        bias = Tensor(F32, (EMBD, TOKENS), flags=Flag.INPUT)
        shared = [ops.sqr(bias), ops.scale(bias, 2.0)]
        x = ops.scale(x, 3.0)
        order, ends = [x], []
        for number in layers:
            x = self.layer(number, x, shared, inputs, order)
            order.append(x)
            ends.append(x)
        x = ops.rms_norm(x, 1e-5)
        x.flags |= Flag.OUTPUT
        return LayeredGraph(None, build_forward([*order, x]), ends)

    def layer(
        self, number: int, x: Tensor, shared: list[Tensor], inputs: tuple[Tensor, Tensor], order: list[Tensor]
    ) -> Tensor:
        *weights, cache, norm, common, alias = self.leafs[number]
        positions, rows = inputs
        values = [x]
        for weight, (what, first, *more) in zip(weights, self.layers[number], strict=True):
            a = values[first % len(values)]
            if what == "product":
                a = ops.mul_mat(weight, a)
            elif what == "norm":
                a = ops.mul(ops.rms_norm(a, 1e-5), norm)
            elif what == "add":
                a = ops.add(a, values[more[0] % len(values)])
            elif what == "rope":
                a = ops.rope(ops.reshape(a, EMBD, 1, TOKENS), positions, 16, freq_base=(1e4, 1e5)[more[0]])
                a = ops.reshape(a, EMBD, TOKENS)
            elif what == "shared":
                a = ops.mul(a, shared[more[0]])
            elif what == "as half":  # activations that are no F32 are copied for a product, once for all
                half = ops.cpy(a if more[0] else shared[0], Tensor(F16, (EMBD, TOKENS)))
                a = ops.add(a, ops.mul_mat(weight, half))
            elif what.startswith("store"):
                order.append(ops.set_rows(common if what == "store common" else cache, a, rows))
                continue
            elif what in ("common", "alias"):
                read = common if what == "common" else alias
                a = ops.add(a, ops.mul_mat(weight, ops.view(read, (EMBD, TOKENS), common.nb[1:])))
            elif what == "cached":
                seen = ops.mul_mat(ops.view(cache, (EMBD, TOKENS), cache.nb[1:]), a)
                a = ops.mul_mat(weight, ops.add(a, ops.repeat(ops.view(seen, (1, TOKENS), seen.nb[1:]), EMBD, TOKENS)))
            else:
                wide = ops.concat(a, a, 0)
                a = ops.view(wide, (EMBD, TOKENS), wide.nb[1:], 4 * EMBD)
                a = ops.scale(ops.cont(a), 0.5)
            values.append(a)
        return ops.add(values[-1], x)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    backend = CPUDevice().open(2)
    made = Scheduler([backend])
    yield made
    made.close()
    backend.close()


def compare(scheduler: Scheduler, kinds: list[Layer], order: list[int]) -> bool:
    """-> whether a few layers were enough."""
    model = Layers(scheduler, kinds, order)
    try:
        model.few.schedule(0, model.build)
        found = model.few.schedule(0, model.build)[1]
        enough = model.asked[-1] < len(order)
        assert_same(found, scheduler.schedule(model.build(range(len(order))).graph))
        return enough
    finally:
        for buffer in model.buffers:
            buffer.free()


def test_random_layers_come_out_as_if_all_were_built(scheduler: Scheduler) -> None:
    answers = []

    @settings(deadline=None, max_examples=250, database=None)
    @given(KINDS, ORDER)
    def attempt(kinds: list[Layer], order: list[int]) -> None:
        answers.append(compare(scheduler, kinds, order))

    attempt()
    assert len(answers) / 5 < sum(answers) < len(answers)


# ---- mutants


class AnyPlace(PlaceWatch):
    """Wrong: the compute buffer is taken to be the same before and after each layer."""

    def check(self, places: object) -> None:
        pass


class AnyMemory(LayerBuilder):
    """Wrong: what a layer makes is taken to be its own."""

    def remember(self, key: Any, value: Any, source: Tensor) -> None:
        Builder.remember(self, key, value, source)
        self._maker[key] = self._layer


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


@pytest.mark.parametrize(
    ("module", "name", "mutant", "kinds", "order"), MUTANTS, ids=[mutant.__name__ for _, _, mutant, _, _ in MUTANTS]
)
def test_a_wrong_form_is_noticed(
    module: Any, name: str, mutant: type, kinds: list[Layer], order: list[int], scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Layers of these kinds, in this order; the right form passes."""
    compare(scheduler, kinds, order)
    monkeypatch.setattr(module, name, mutant)
    with pytest.raises(AssertionError):
        compare(scheduler, kinds, order)
