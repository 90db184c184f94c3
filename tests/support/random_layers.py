"""Random graphs of layers of up to three kinds, which share things in all the ways that a model may.

Owns the layers, and the comparison of what a few of them make with what all make.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml import ops
from pyggml.backend.base import Usage
from pyggml.backend.few_layers import FewLayers, LayeredGraph
from pyggml.backend.pack import pack
from pyggml.backend.scheduler import Schedule, Scheduler
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.tensor import Flag, Tensor

F32, F16, Q8_0, I32, I64 = GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.I32, GGMLType.I64

EMBD, TOKENS, CELLS = 32, 3, 8
Layer = list[tuple[Any, ...]]
TEN, TWO, TYPES = range(10), range(2), (F32, F16, Q8_0)
PLAIN: dict[str, tuple[Sequence[Any], ...]] = {
    "product": (TEN, TYPES),
    "norm": (TEN,),
    "add": (TEN, TEN),
    "rope": (TEN, TWO),
}
"""What ties a layer to no other: nearly all layers that are made of this alone come again. Each with the values of its arguments."""
WHATS: dict[str, tuple[Sequence[Any], ...]] = {
    **PLAIN,
    "shared": (TEN, TWO),
    "as half": (TEN, TWO),
    "store": (TEN,),
    "cached": (TEN,),
    "wider": (TEN,),
    "common": (TEN,),
    "alias": (TEN,),
    "store common": (TEN,),
    "product of shared": (TWO, TYPES),
    "store shared": (TEN,),
}


def _instructions(whats: dict[str, tuple[Sequence[Any], ...]]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.one_of([st.tuples(st.just(name), *map(st.sampled_from, values)) for name, values in whats.items()])


KINDS = st.one_of(
    st.lists(st.lists(_instructions(PLAIN), min_size=1, max_size=6), min_size=1, max_size=2),
    st.lists(st.lists(_instructions(WHATS), max_size=6), min_size=1, max_size=3),
)
SOME = st.lists(st.integers(0, 2), max_size=2)
ORDER = st.tuples(SOME, st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(3, 10), SOME).map(
    lambda drawn: drawn[0] + (drawn[1] * 10)[: drawn[2]] + drawn[3]
)  # mostly they come again


def drawn(rng: random.Random) -> tuple[list[Layer], list[int], int | None]:
    """Kinds, order and a cut by chance, often of few sorts of instructions: quicker than hypothesis, for very many."""
    names = list(WHATS) if rng.random() < 0.5 else rng.sample(list(WHATS), rng.randint(1, 4))

    def instruction() -> tuple[Any, ...]:
        name = rng.choice(names)
        return (name, *(rng.choice((values[0], *rng.choices(values, k=2))) for values in WHATS[name]))

    def some() -> list[int]:
        return rng.choices(range(3), k=rng.randint(0, 2))

    kinds = [[instruction() for _ in range(rng.randint(0, 6))] for _ in range(rng.randint(1, 3))]
    again = rng.choices(range(3), k=rng.randint(1, 3)) * 10
    order = some() + again[: rng.randint(3, 10)] + some()
    cut = rng.choice((None, *range(1, 10), *range(-9, 0)))
    return kinds, order, None if cut is None else within(cut, order)


def within(cut: int, order: list[int]) -> int:
    """A cut that leaves a layer on each side."""
    return max(min(cut, len(order) - 1), 1 - len(order))


class Layers:
    """A model of layers of these kinds, in this order, with weights of their own; from layer `cut` on on the second device, or,
    where it counts from the end, up to there."""

    def __init__(self, scheduler: Scheduler, kinds: list[Layer], order: list[int], cut: int | None = None) -> None:
        self.scheduler = scheduler
        self.layers = [kinds[i % len(kinds)] for i in order]
        self.leafs: list[list[Tensor]] = []
        self.common = Tensor(F16, (EMBD, CELLS))  # all layers read it, and some write it
        for layer in self.layers:
            types = [instruction[2] if instruction[0].startswith("product") else F32 for instruction in layer]
            weights = [Tensor(dtype, (EMBD, EMBD), name=f"w{len(self.leafs)}.{i}") for i, dtype in enumerate(types)]
            self.leafs.append(
                [*weights, Tensor(F16, (EMBD, CELLS)), Tensor(F32, (EMBD,)), self.common, Tensor(F16, (EMBD, CELLS))]
            )
        first, second = self.leafs[:cut], [] if cut is None else self.leafs[cut:]
        if cut is not None and cut < 0:
            first, second = second, first
        self.buffers = pack(
            scheduler.devices[0], [self.common, *(t for leafs in first for t in leafs[:-2])], Usage.WEIGHTS
        )
        if second:
            self.buffers += pack(scheduler.devices[1], [t for leafs in second for t in leafs[:-2]], Usage.WEIGHTS)
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
            elif what == "product of shared":
                a = ops.add(a, ops.mul_mat(weight, shared[first % 2]))
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
                to = {"store common": common, "store shared": shared[0]}.get(what, cache)
                order.append(ops.set_rows(to, a, rows))
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


def compare(
    scheduler: Scheduler,
    kinds: list[Layer],
    order: list[int],
    assert_same: Callable[[Schedule, Schedule], None],
    cut: int | None = None,
) -> bool:
    """-> whether a few layers were enough."""
    model = Layers(scheduler, kinds, order, cut)
    try:
        model.few.schedule(0, model.build)
        found = model.few.schedule(0, model.build)[1]
        enough = model.asked[-1] < len(order)
        assert_same(found, scheduler.schedule(model.build(range(len(order))).graph))
        return enough
    finally:
        for buffer in model.buffers:
            buffer.free()


def compare_many(
    scheduler: Scheduler, assert_same: Callable[[Schedule, Schedule], None], examples: int, *, cut: bool = False
) -> None:
    """Of random layers; `cut`: on two devices. Few layers are enough in a fifth of them at least, cut in a twentieth, and in some
    they are not."""
    enough = []
    cuts = st.one_of(st.integers(1, 9), st.integers(-9, -1)) if cut else st.none()

    @settings(deadline=None, max_examples=examples, database=None)
    @given(KINDS, ORDER, cuts)
    def attempt(kinds: list[Layer], order: list[int], at: int | None) -> None:
        enough.append(compare(scheduler, kinds, order, assert_same, None if at is None else within(at, order)))

    attempt()
    assert len(enough) / (20 if cut else 5) < sum(enough) < len(enough), (sum(enough), len(enough))
