"""What a context remembers of its sequences: cells of keys and values, windows of them, recurrent states, a kind a layer.

`base.py` is the interface; `make_memory` builds what a model's layers ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyggml.backend.base import Device
from pyggml.dtypes import GGMLType
from pyggml.memory.base import Compute, Memory
from pyggml.memory.kv import KVCache
from pyggml.memory.kv_tensors import KVLayer
from pyggml.memory.layered import Layered
from pyggml.memory.recurrent import RecurrentState, StateLayer


@dataclass(frozen=True)
class Need:
    """What one layer asks for: a cache of keys and values, with a window or without, or states."""

    kv: KVLayer | None = None
    window: int | None = None
    states: StateLayer | None = None

    @property
    def il(self) -> int:
        one = self.kv or self.states
        assert one is not None
        return one.il


@dataclass(frozen=True)
class MemoryOptions:
    """n_ctx        tokens of a stream
    n_ubatch     tokens of a micro-batch: what a window must hold besides itself
    n_seq_max    sequences
    unified      they share one stream of cells; else each has one of its own
    """

    n_ctx: int
    n_ubatch: int = 512
    n_seq_max: int = 1
    unified: bool = False
    type_k: GGMLType = GGMLType.F16
    type_v: GGMLType = GGMLType.F16
    transposed_v: bool = False


def make_memory(needs: Sequence[Need], options: MemoryOptions) -> Layered:
    """One cache for each size of window, one memory for all states. Nothing is allocated yet. Raises UnsupportedError."""
    streams = 1 if options.unified or options.n_seq_max == 1 else options.n_seq_max
    parts: list[Memory] = []
    where: dict[int, tuple[int, int]] = {}
    for window in dict.fromkeys(need.window for need in needs if need.kv is not None):
        here = [need.kv for need in needs if need.kv is not None and need.window == window]
        n_ctx = options.n_ctx
        if window is not None:
            n_ctx = min(n_ctx, (window + options.n_ubatch) * (1 if streams > 1 else options.n_seq_max))
        where |= {layer.il: (len(parts), i) for i, layer in enumerate(here)}
        parts.append(
            KVCache(
                here,
                n_ctx,
                type_k=options.type_k,
                type_v=options.type_v,
                transposed_v=options.transposed_v,
                n_seq_max=options.n_seq_max,
                n_streams=streams,
                window=window,
                n_ctx_seen=options.n_ctx,
            )
        )
    if states := [need.states for need in needs if need.states is not None]:
        where |= {layer.il: (len(parts), i) for i, layer in enumerate(states)}
        parts.append(RecurrentState(states, options.n_seq_max))
    return Layered(parts, where)


def allocate(memory: Layered, device_of: Sequence[Device], compute: Compute) -> None:
    """Each layer's part on the layer's device; `compute` runs the graphs that move cells. Raises DeviceError."""
    try:
        for number, part in enumerate(memory.parts):
            mine = sorted((i, il) for il, (p, i) in memory.where.items() if p == number)
            devices = [device_of[il] for _, il in mine]
            assert isinstance(part, KVCache | RecurrentState)
            if isinstance(part, KVCache):
                part.compute = compute
            part.allocate(devices)
    except BaseException:
        memory.free()
        raise
