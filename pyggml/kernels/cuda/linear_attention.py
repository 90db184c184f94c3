"""GATED_LINEAR_ATTN, RWKV_WKV6, RWKV_WKV7: a warp has a column of a state (of WKV7 a row) in its registers, token after token.

Source of the formulas: ggml-cpu/ops.cpp: ggml_compute_forward_gla_f32, _rwkv_wkv6_f32, _rwkv_wkv7_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import blocks, refuse, source
from pyggml.kernels.cuda.recurrence import MOST, WARPS, parts_of
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    size, heads = source(node, 0).ne[:2]
    if not node.is_contiguous:
        return "the result is not contiguous"
    if size > MOST:
        return f"heads of {size} numbers, at most {MOST} are supported"
    state = next(t for t in reversed(node.src) if t is not None)
    if max(heads, state.ne[1]) > 65535:
        return f"{heads} heads in {state.ne[1]} sequences, at most 65535 each are supported"
    return refuse(node, *(t for t in node.src if t is not None))


def lower(builder: Builder, node: Tensor) -> None:
    size, heads, tokens, _ = source(node, 0).ne
    *inputs, state = (t.data for t in node.src if t is not None)
    sequences = next(t for t in reversed(node.src) if t is not None).ne[1]
    grid = (blocks(size, WARPS), heads, sequences)
    shape = Shape(y=node.data, s=state, size=size, heads=heads, tokens=tokens // sequences)
    if node.op == Op.RWKV_WKV7:
        r, w, k, v, a, b = inputs
        seven = Wkv7Args(shape, r=r, w=w, k=k, v=v, a=a, b=b)
        builder.launch(Spec("linear_attention", "wkv7", (parts_of(size),)), grid, 32 * WARPS, seven)
        return
    if node.op == Op.RWKV_WKV6:
        k, v, r, bonus, decay = inputs
        args = Wkv6Args(shape, k=k, v=v, r=r, bonus=bonus, decay=decay, by=1.0)
    else:
        k, v, r, decay = inputs
        args = Wkv6Args(shape, k=k, v=v, r=r, bonus=0, decay=decay, by=node.param_f32(0))
    builder.launch(Spec("linear_attention", "wkv6", (parts_of(size),)), grid, 32 * WARPS, args)


class Shape(NamedTuple):
    """The result, the states before; heads of `size`, and tokens of a sequence."""

    y: i64
    s: i64
    size: i32
    heads: i32
    tokens: i32


class Wkv6Args(NamedTuple):
    """bonus: 0 where the state is changed before it is read (GATED_LINEAR_ATTN); by: what r is multiplied with."""

    shape: Shape
    k: i64
    v: i64
    r: i64
    bonus: i64
    decay: i64
    by: f32


def wkv6(parts):
    """The warp's column j: number i stands in row i of the state."""
    from pyggml.kernels.cuda import device as d

    @entry(Wkv6Args, 32 * WARPS)
    def kernel(y, s, size, heads, tokens, k, v, r, bonus, decay, by):
        lane = d.i32(d.thread() & 31)
        column = d.i32(d.block_x() * WARPS + (d.thread() >> 5))
        head, sequence = d.i32(d.block_y()), d.i32(d.block_z())
        if column < size:
            state, extra = d.cuda.local.array(parts, d.f32), d.cuda.local.array(parts, d.f32)
            place = (d.i64(sequence) * heads + head) * size * size + column
            for p in range(parts):
                i = d.i32(lane + 32 * p)
                state[p], extra[p] = d.f32(0), d.f32(0)
                if i < size:
                    state[p] = d.ld_f32(s + (place + i * size) * 4)
                    if bonus != 0:
                        extra[p] = d.ld_f32(bonus + (head * size + i) * 4)
            t = d.i32(0)
            while t < tokens:
                token = ((d.i64(sequence) * tokens + t) * heads + head) * size * 4
                value = d.ld_f32(v + token + column * 4)
                found = d.f32(0)
                for p in range(parts):
                    i = d.i32(lane + 32 * p)
                    if i < size:
                        both = d.ld_f32(k + token + i * 4) * value
                        seen = d.fma(both, extra[p], state[p])
                        state[p] = d.fma(state[p], d.ld_f32(decay + token + i * 4), both)
                        if bonus == 0:
                            seen = state[p]
                        found = d.fma(seen, d.ld_f32(r + token + i * 4) * by, found)
                found = d.warp_sum(found)
                if lane == 0:
                    d.st_f32(y + token + column * 4, found)
                t = d.i32(t + 1)
            kept = y + d.i64(d.blocks_z()) * tokens * heads * size * 4
            for p in range(parts):
                i = d.i32(lane + 32 * p)
                if i < size:
                    d.st_f32(kept + (place + i * size) * 4, state[p])

    return kernel


class Wkv7Args(NamedTuple):
    shape: Shape
    r: i64
    w: i64
    k: i64
    v: i64
    a: i64
    b: i64


def wkv7(parts):
    from pyggml.kernels.cuda import device as d

    @entry(Wkv7Args, 32 * WARPS)
    def kernel(y, s, size, heads, tokens, r, w, k, v, a, b):
        lane = d.i32(d.thread() & 31)
        row = d.i32(d.block_x() * WARPS + (d.thread() >> 5))
        head, sequence = d.i32(d.block_y()), d.i32(d.block_z())
        if row < size:
            state = d.cuda.local.array(parts, d.f32)
            place = ((d.i64(sequence) * heads + head) * size + row) * size
            for p in range(parts):
                i = d.i32(lane + 32 * p)
                state[p] = d.f32(0)
                if i < size:
                    state[p] = d.ld_f32(s + (place + i) * 4)
            t = d.i32(0)
            while t < tokens:
                token = ((d.i64(sequence) * tokens + t) * heads + head) * size * 4
                value = d.ld_f32(v + token + row * 4)
                found = d.f32(0)
                for p in range(parts):
                    i = d.i32(lane + 32 * p)
                    if i < size:
                        found = d.fma(state[p], d.ld_f32(a + token + i * 4), found)
                found = d.warp_sum(found)
                result = d.f32(0)
                for p in range(parts):
                    at = token + (lane + 32 * p) * 4
                    if lane + 32 * p < size:
                        more = d.fma(value, d.ld_f32(k + at), found * d.ld_f32(b + at))
                        state[p] = d.fma(state[p], d.ld_f32(w + at), more)
                        result = d.fma(state[p], d.ld_f32(r + at), result)
                result = d.warp_sum(result)
                if lane == 0:
                    d.st_f32(y + token + row * 4, result)
                t = d.i32(t + 1)
            kept = y + d.i64(d.blocks_z()) * tokens * heads * size * 4
            for p in range(parts):
                i = d.i32(lane + 32 * p)
                if i < size:
                    d.st_f32(kept + (place + i) * 4, state[p])

    return kernel
