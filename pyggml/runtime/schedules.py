"""The graphs of a context's micro-batches, made ready to run, and kept as long as they are likely to be used again.

Owns what a graph is found by, and how many are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from pyggml.backend.few_layers import FewLayers, LayeredGraph
from pyggml.backend.scheduler import Schedule, Scheduler
from pyggml.memory.blocks import Blocks
from pyggml.memory.encoded import Encoded
from pyggml.memory.kv import KVCache
from pyggml.memory.layered import Layered
from pyggml.memory.recurrent import RecurrentState
from pyggml.model.graph import BuiltGraph, GraphBuilder, UbatchShape
from pyggml.model.lora import Applied
from pyggml.model.model import Model
from pyggml.model.module import Module
from pyggml.runtime.timings import clock
from pyggml.tensor import Tensor

KEPT = 8
"""For one sequence; as many more as there are further ones, up to MOST."""
MOST = 64

KEPT_ADAPTERS = 4
"""Sets of adapters for which it is kept which layers are alike."""

Made = tuple[BuiltGraph, Schedule]


class Schedules:
    """`use` says which memory and which scheduler they are made for.

    seconds  that making graphs has taken so far
    """

    def __init__(self, model: Model, n_seq_max: int) -> None:
        self._model = model
        self._kept = min(KEPT + n_seq_max - 1, MOST)
        self._made: OrderedDict[Hashable, Made] = OrderedDict()
        self._few: dict[tuple[Applied, ...], FewLayers[BuiltGraph]] = {}
        self._memory: Layered | None = None
        self._scheduler: Scheduler | None = None
        self.seconds = 0.0

    def use(self, memory: Layered, scheduler: Scheduler) -> None:
        """Those made for others are forgotten."""
        self.clear()
        self._memory, self._scheduler = memory, scheduler

    def clear(self) -> None:
        self._made.clear()
        self._few.clear()

    def values(self) -> list[Made]:
        """Those that are kept."""
        return list(self._made.values())

    def ready(self, shape: UbatchShape, adapters: tuple[Applied, ...]) -> Made:
        """The graph of such a micro-batch, made on first need; the most recently used ones are kept."""
        key = shape, adapters
        made = self._made.get(key)
        if made is None:
            begun = clock()
            made = self._made[key] = self.make(shape, adapters)
            self.seconds += clock() - begun
            if len(self._made) > self._kept:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return made

    def make(self, shape: UbatchShape, adapters: tuple[Applied, ...]) -> Made:
        """Such a graph, made anew. Raises UnsupportedError."""
        model, memory, scheduler = self._model, self._memory, self._scheduler
        assert memory is not None and scheduler is not None, "no memory to make graphs for"

        def build(layers: Sequence[int]) -> LayeredGraph[BuiltGraph]:
            built = model.modules.build(GraphBuilder(model.config, memory, shape, adapters), layers)
            return LayeredGraph(built, built.graph, built.ends)

        if not model.modules.alike or shape.wanted.encodes:
            whole = build(range(model.config.n_layer))
            return whole.built, scheduler.schedule(whole.graph)
        few = self._few.get(adapters)
        if few is None:
            if len(self._few) >= KEPT_ADAPTERS:
                self._few.clear()
            own = [_own_tensors(block, memory, adapters) for block in model.modules.blk]
            few = self._few[adapters] = FewLayers(scheduler, own)
        return few.schedule(shape.form, build)


def _own_tensors(block: Module, memory: Layered, adapters: tuple[Applied, ...]) -> list[Tensor]:
    """Those that a layer reads or writes in its turn: weights, memory, what adapters add to its weights."""
    adapted = [
        pair
        for module in block.modules()
        for weight in module.own()
        for applied in adapters
        if (pair := applied.adapter.pairs.get(weight.name)) is not None
    ]
    remembered: list[Tensor] = []
    for number, i in memory.where.get(block.il, []):
        part = memory.parts[number]
        if (
            isinstance(part, KVCache | RecurrentState | Encoded | Blocks) and part.layers[i].il == block.il
        ):  # else another layer's
            remembered += part.tensors(i)
    added = [tensor for applied in adapters for tensor in applied.adapter.own(block.il)]
    return [*block.tensors(), *remembered, *(t for pair in adapted for t in pair), *added]
