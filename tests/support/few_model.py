"""A context's graphs of some of its model's layers: what `pyggml.backend.few_layers` asks for."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyggml.backend.base import Device
from pyggml.backend.few_layers import FewLayers, LayeredGraph
from pyggml.backend.scheduler import Schedule
from pyggml.memory.kv import KVCache
from pyggml.model.graph import BuiltGraph, GraphBuilder, UbatchShape
from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.tensor import Tensor


class FewModel:
    def __init__(self, context: Context) -> None:
        self.context = context
        self.leafs: list[list[Tensor]] = []
        for il, block in enumerate(context.model.modules.blk):
            weights = [weight.tensor for module in block.modules() for weight in module.own()]
            _, i, cache = context.memory.of(il, KVCache)
            self.leafs.append([*(t for t in weights if t is not None), *cache.tensors(i)])
        self.few: FewLayers[BuiltGraph] = FewLayers(context.scheduler, self.leafs)
        self.asked: list[tuple[int, ...]] = []

    def build(self, layers: Sequence[int], shape: UbatchShape) -> LayeredGraph[BuiltGraph]:
        """As CausalLM.build, of these layers."""
        self.asked.append(tuple(layers))
        model, ends = self.context.model, []
        g = GraphBuilder(model.config, self.context.memory, shape, self.context.adapters)
        cur = model.modules.embed(g)
        for il in layers:
            cur = model.modules.blk[il](g, cur)
            ends.append(cur)
        logits = model.modules.logits(g, model.modules.output_norm(g, cur)) if g.n_outputs else None
        built = g.finish(logits, ends)
        return LayeredGraph(built, built.graph, ends if g.n_outputs else ends[:-1])

    def shape(self, n_tokens: int, n_kv: int, n_outputs: int) -> UbatchShape:
        return self.context.shape(n_tokens, n_kv, n_outputs)

    def whole(self, n_tokens: int, n_kv: int, n_outputs: int) -> tuple[BuiltGraph, Schedule]:
        return self.whole_of(self.shape(n_tokens, n_kv, n_outputs))

    def whole_of(self, shape: UbatchShape) -> tuple[BuiltGraph, Schedule]:
        built = self.build(range(len(self.leafs)), shape).built
        return built, self.context.scheduler.schedule(built.graph)

    def schedule(self, n_tokens: int, n_kv: int, n_outputs: int) -> tuple[BuiltGraph, Schedule]:
        return self.schedule_of(self.shape(n_tokens, n_kv, n_outputs))

    def form(self, shape: UbatchShape) -> tuple[bool, bool]:
        return shape.n_tokens == shape.n_outputs, shape.n_outputs > 0

    def schedule_of(self, shape: UbatchShape) -> tuple[BuiltGraph, Schedule]:
        return self.few.schedule(self.form(shape), lambda layers: self.build(layers, shape))


@contextlib.contextmanager
def opened(path: Path, devices: Sequence[Device] = (), n_gpu_layers: int = 99, **options: Any) -> Iterator[FewModel]:
    """Of a model that has so many of its layers on these devices, if there are any."""
    model = Model.load(path, devices=devices, n_gpu_layers=n_gpu_layers)
    context = Context(model, n_ctx=512, n_ubatch=8, n_threads=2, **options)
    yield FewModel(context)
    context.close()
    model.close()
