"""What a context remembers of its sequences: cells of keys and values, windows of them, recurrent states, a kind a layer.

`base.py` is the interface; `make_memory` builds what a model's layers ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyggml.backend.base import Device
from pyggml.dtypes import GGMLType
from pyggml.memory.base import Compute, Memory
from pyggml.memory.blocks import BlockLayer, Blocks
from pyggml.memory.encoded import Encoded
from pyggml.memory.kv import KVCache
from pyggml.memory.kv_tensors import KVLayer, pad_cells
from pyggml.memory.layered import Layered
from pyggml.memory.recurrent import RecurrentState, StateLayer
from pyggml.memory.tokens import Tokens
from pyggml.memory.window import Window


class SharedKV(NamedTuple):
    """Layer `il` keeps no keys and values of its own: it reads those of layer `of`, which comes before it."""

    il: int
    of: int


@dataclass(frozen=True)
class Need:
    """What one layer asks for: a cache of keys and values, another layer's, states, an encoded text's, or several of these.

    window   tokens that a token sees, itself among them; None: all before it
    chunked  the window begins anew at each position that it divides (Window)
    alibi    masks hold distances, for scores that fall with them
    encoded  keys and values of a text that an encoder has read
    blocks   rows that stand for blocks of tokens
    tokens   whether the tokens before count themselves
    """

    kv: KVLayer | None = None
    window: int | None = None
    states: StateLayer | None = None
    chunked: bool = False
    shared: SharedKV | None = None
    alibi: bool = False
    encoded: KVLayer | None = None
    blocks: BlockLayer | None = None
    tokens: bool = False

    @property
    def seen(self) -> Window | None:
        return None if self.window is None else Window(self.window, self.chunked)


@dataclass(frozen=True)
class MemoryOptions:
    """n_ctx        tokens of a stream
    n_ubatch     tokens of a micro-batch: what a window must hold besides itself
    n_seq_max    sequences
    unified      they share one stream of cells; else each has one of its own
    swa_full     windows keep all tokens too, so that they can go back to any
    """

    n_ctx: int
    n_ubatch: int = 512
    n_seq_max: int = 1
    unified: bool = False
    type_k: GGMLType = GGMLType.F16
    type_v: GGMLType = GGMLType.F16
    transposed_v: bool = False
    swa_full: bool = False


def make_memory(needs: Sequence[Need], options: MemoryOptions) -> Layered:
    """One cache for each kind of window, one memory for all states, one for encoded texts, one for blocks of each size. Nothing is allocated yet. Raises UnsupportedError.

    A window has as many cells as in llama-kv-cache-iswa.cpp. Sequences with rows for blocks share no cells."""
    blocks = [need.blocks for need in needs if need.blocks is not None]
    streams = 1 if (options.unified and not blocks) or options.n_seq_max == 1 else options.n_seq_max
    parts: list[Memory] = []
    where: dict[int, list[tuple[int, int]]] = {}
    for window in dict.fromkeys(need.seen for need in needs if need.kv is not None):
        here = [need.kv for need in needs if need.kv is not None and need.seen == window]
        n_ctx = options.n_ctx
        if window is not None and not options.swa_full:
            n_ctx = min(n_ctx, window.n * (1 if streams > 1 else options.n_seq_max) + options.n_ubatch)
        for i, layer in enumerate(here):
            where.setdefault(layer.il, []).append((len(parts), i))
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
                alibi=any(need.alibi for need in needs),
            )
        )
    states: dict[int, dict[str, int]] = {}  # parts of a layer may have states each
    for one in (need.states for need in needs if need.states is not None):
        states.setdefault(one.il, {}).update(one.sizes)
    if states:
        for i, il in enumerate(states):
            where.setdefault(il, []).append((len(parts), i))
        parts.append(RecurrentState([StateLayer(il, sizes) for il, sizes in states.items()], options.n_seq_max))
    for ratio in dict.fromkeys(layer.ratio for layer in blocks):
        alike = [layer for layer in blocks if layer.ratio == ratio]
        for i, block_layer in enumerate(alike):
            where.setdefault(block_layer.il, []).append((len(parts), i))
        parts.append(Blocks(alike, options.n_ctx, options.type_k, options.n_seq_max))
    if any(need.tokens for need in needs):
        parts.append(Tokens(pad_cells(options.n_ctx), options.n_seq_max))
    if encoded := [need.encoded for need in needs if need.encoded is not None]:
        for i, layer in enumerate(encoded):
            where.setdefault(layer.il, []).append((len(parts), i))
        parts.append(
            Encoded(
                encoded,
                options.n_ubatch,
                transposed_v=options.transposed_v,
                n_seq_max=options.n_seq_max,
                n_streams=streams,
            )
        )
    for il, of in (need.shared for need in needs if need.shared is not None):
        assert of in where and of < il, f"layer {il} is to share the cache of layer {of}, which has none"
        where.setdefault(il, []).extend(at for at in where[of] if isinstance(parts[at[0]], KVCache))
    return Layered(parts, where)


def allocate(memory: Layered, device_of: Sequence[Device], compute: Compute) -> None:
    """Each layer's part on the layer's device; `compute` runs the graphs that move cells. Raises DeviceError."""
    try:
        for part in memory.parts:
            assert isinstance(part, KVCache | RecurrentState | Encoded | Blocks | Tokens)
            if isinstance(part, KVCache):
                part.compute = compute
            part.allocate([device_of[layer.il] for layer in part.layers])
    except BaseException:
        memory.free()
        raise
