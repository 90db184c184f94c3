"""GATED_DELTA_NET: a warp has the row of a state that belongs to one element of v in its registers, token after token.

Source of the formulas: ggml-cpu/ops.cpp: ggml_compute_forward_gated_delta_net_one_chunk.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Rows, entry, rows
from pyggml.kernels.cuda.layout import blocks, refuse, source
from pyggml.kernels.cuda.recurrence import MOST, WARPS, parts_of
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    v = source(node, 2)
    if not node.is_contiguous:
        return "the result is not contiguous"
    if v.ne[0] > MOST:
        return f"heads of {v.ne[0]} numbers, at most {MOST} are supported"
    if max(v.ne[1], v.ne[3]) > 65535:
        return f"{v.ne[1]} heads in {v.ne[3]} sequences, at most 65535 each are supported"
    return refuse(node, *(source(node, i) for i in range(6)))


def lower(builder: Builder, node: Tensor) -> None:
    q, k, v, g, beta, state = (source(node, i) for i in range(6))
    size, heads, tokens, sequences = v.ne
    args = GatedDeltaNetArgs(
        y=node.data, q=rows(q), k=rows(k), v=rows(v), g=g.data, beta=beta.data, s=state.data, size=size, heads=heads,
        tokens=tokens, q_heads=q.ne[1], k_heads=k.ne[1], q_share=sequences // q.ne[3], k_share=sequences // k.ne[3],
        gates=g.ne[0], slots=node.param_i32(0), by=1 / math.sqrt(size),
    )  # fmt: skip
    spec = Spec("gated_delta_net", "gated_delta_net", (parts_of(size),))
    builder.launch(spec, (blocks(size, WARPS), heads, sequences), 32 * WARPS, args)


class GatedDeltaNetArgs(NamedTuple):
    """q, k, v: heads, tokens, sequences lie nb1, nb2, nb3 apart. q_heads: so many heads of q come again and again; q_share:
    neighbouring sequences that have the same; k likewise. `gates`: 1 a head, or one an element."""

    y: i64
    q: Rows
    k: Rows
    v: Rows
    g: i64
    beta: i64
    s: i64
    size: i32
    heads: i32
    tokens: i32
    q_heads: i32
    k_heads: i32
    q_share: i32
    k_share: i32
    gates: i32
    slots: i32
    by: f32


def gated_delta_net(parts):
    """Lane l has the numbers l, l + 32 ... of its row."""
    import math

    from pyggml.kernels.cuda import device as d

    @entry(GatedDeltaNetArgs, 32 * WARPS)
    def kernel(
        y, q, q1, q2, q3, k, k1, k2, k3, v, v1, v2, v3, g, beta, s, size, heads, tokens, q_heads, k_heads, q_share,
        k_share, gates, slots, by,
    ):  # fmt: skip
        lane = d.i32(d.thread() & 31)
        row = d.i32(d.block_x() * WARPS + (d.thread() >> 5))
        head, sequence = d.i32(d.block_y()), d.i32(d.block_z())
        if row < size:
            state, keys = d.cuda.local.array(parts, d.f32), d.cuda.local.array(parts, d.f32)
            every = d.i64(d.blocks_z()) * heads * size  # rows of the states of all sequences
            place = ((d.i64(sequence) * heads + head) * size + row) * size
            for p in range(parts):
                i = d.i32(lane + 32 * p)
                state[p] = d.f32(0)
                if i < size:
                    state[p] = d.ld_f32(s + (place + i) * 4)
            kept = y + every * tokens * 4
            query = q + d.urem(head, q_heads) * q1 + d.udiv(sequence, q_share) * q3
            key = k + d.urem(head, k_heads) * k1 + d.udiv(sequence, k_share) * k3
            value = v + row * 4 + head * v1 + sequence * v3
            t = d.i32(0)
            while t < tokens:
                token = (d.i64(sequence) * tokens + t) * heads + head
                decay = d.f32(1)
                if gates == 1:
                    decay = math.exp(d.ld_f32(g + token * 4))
                found = d.f32(0)
                for p in range(parts):
                    i = d.i32(lane + 32 * p)
                    keys[p] = d.f32(0)
                    if i < size:
                        keys[p] = d.ld_f32(key + t * k2 + i * 4)
                        if gates != 1:
                            decay = math.exp(d.ld_f32(g + (token * size + i) * 4))
                        state[p] = state[p] * decay
                        found = d.fma(state[p], keys[p], found)
                change = (d.ld_f32(value + t * v2) - d.warp_sum(found)) * d.ld_f32(beta + token * 4)
                found = d.f32(0)
                for p in range(parts):
                    i = d.i32(lane + 32 * p)
                    if i < size:
                        state[p] = d.fma(change, keys[p], state[p])
                        found = d.fma(state[p], d.ld_f32(query + t * q2 + i * 4), found)
                found = d.warp_sum(found) * by
                if lane == 0:
                    d.st_f32(y + (token * size + row) * 4, found)
                slot = d.i32(tokens - 1 - t)
                if slot < slots:
                    for p in range(parts):
                        i = d.i32(lane + 32 * p)
                        if i < size:
                            d.st_f32(kept + (slot * every * size + place + i) * 4, state[p])
                t = d.i32(t + 1)
            if tokens == 0 and slots == 1:
                for p in range(parts):
                    i = d.i32(lane + 32 * p)
                    if i < size:
                        d.st_f32(kept + (place + i) * 4, state[p])

    return kernel
