"""FLASH_ATTN_EXT: which kernel takes it, and the plain one, which reads keys and values of any type element by element.

In the plain kernel one block of threads takes one query of one head: 128 keys at a time, with a running maximum. Keys
that the mask hides are not looked at, whatever they and their values hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda import attention_tile, attention_wide
from pyggml.kernels.cuda.attention_operands import Operands, Shared
from pyggml.kernels.cuda.blocks import SIMPLE
from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import F32, FLOATS, option, refuse, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

THREADS = 128
TYPES = (*FLOATS, *SIMPLE)
"""Of keys and values, by the numbers that kernels know them by."""
MOST_HEAD = 1024
AREA = 256
"""Bytes of shared memory for sums and maxima."""


def why_not(node: Tensor) -> str | None:
    q, k, v = (source(node, i) for i in range(3))
    if max(q.ne[0], v.ne[0]) > MOST_HEAD:
        return f"head sizes {q.ne[0]} and {v.ne[0]}, at most {MOST_HEAD} is supported"
    if q.ne[1] > 65535 or q.ne[3] > 65535:
        return f"{q.ne[1]} queries in {q.ne[3]} batches, at most 65535 each are supported"
    return refuse_types(TYPES, k, v) or refuse_types([F32], node, q) or refuse(option(node, 3), option(node, 4))


def lower(builder: Builder, node: Tensor) -> None:
    x = Operands(builder, node)
    k, v = x.k, x.v
    for tiled in (attention_tile, attention_wide):
        if tiled.takes(builder.cc, node, x):
            tiled.lower(builder, node, x)
            return

    args = PlainArgs(x.args, kk=TYPES.index(k.type), kv=TYPES.index(v.type))
    shared = 2 * AREA + 4 * THREADS + 4 * x.q.ne[0]
    grid = (x.q.ne[2], x.q.ne[1], x.q.ne[3])
    builder.launch(Spec("attention", "plain"), grid, THREADS, args, shared)


class PlainArgs(NamedTuple):
    shared: Shared
    kk: i32
    kv: i32


def plain():
    import math

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.blocks import element

    of_floats, of_blocks = element("floats"), element("simple")
    count_floats = len(FLOATS)
    parts = MOST_HEAD // THREADS

    @d.inline
    def value(row, i, step, kind):
        if kind < count_floats:
            return of_floats(row, i, step, kind, 0)
        return of_blocks(row, i, step, kind - count_floats, 0)

    @entry(PlainArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, q, q0, q1, q2, q3, k, k0, k1, k2, k3, v, v0, v1, v2, v3, mask, mask0, mask1, mask2,
        mask3, key_size, value_size, n_kv, n_tokens, n_head, ratio_k, ratio_v, mask_heads, mask_batches, slopes, sinks, sink_step,
        scale, softcap, kk, kv,
    ):  # fmt: skip
        lowest = d.bits_float(-8388608)  # -inf
        me = d.i32(d.thread())
        h, t, z = d.block_x(), d.block_y(), d.block_z()
        areas = d.shared()
        weights = d.i32(areas + 2 * AREA)
        query = d.i32(weights + 4 * THREADS)
        i = d.i32(me)
        while i < key_size:
            d.sst_f32(query + 4 * i, d.ld_f32(q + i * q0 + t * q1 + h * q2 + z * q3))
            i = d.i32(i + THREADS)
        keys = k + d.udiv(h, ratio_k) * k2 + z * k3
        values = v + d.udiv(h, ratio_v) * v2 + z * v3
        biases = mask + t * mask1 + d.urem(h, mask_heads) * mask2 + d.urem(z, mask_batches) * mask3
        slope = d.f32(1)
        if slopes != 0:
            slope = d.ld_f32(slopes + 4 * h)
        top, total = lowest, d.f32(0)
        result = d.cuda.local.array(parts, d.f32)
        for e in range(parts):
            result[e] = d.f32(0)
        first = d.i32(0)
        d.barrier()
        while first < n_kv:
            j = d.i32(first + me)
            s = lowest
            if j < n_kv:
                bias = d.f32(0)
                if mask != 0:
                    bias = slope * d.ld_f16(biases + j * mask0)
                if bias != lowest:
                    s = d.f32(0)
                    i = d.i32(0)
                    while i < key_size:
                        s = d.fma(d.sld_f32(query + 4 * i), value(keys + j * k1, i, k0, kk), s)
                        i = d.i32(i + 1)
                    s = s * scale
                    if softcap != d.f32(0):
                        s = softcap * math.tanh(s)
                    s = s + bias
            higher = d.fmaximum(top, d.block_max(s, areas))
            w, keep = d.f32(0), d.f32(1)
            if higher != lowest:
                keep = math.exp(top - higher)
                if s != lowest:
                    w = math.exp(s - higher)
            top = higher
            d.sst_f32(weights + 4 * me, w)
            total = total * keep + d.block_sum(w, areas + AREA)
            count = min(n_kv - first, THREADS)
            for e in range(parts):
                i = d.i32(me + e * THREADS)
                if i < value_size:
                    x = result[e] * keep
                    n = d.i32(0)
                    while n < count:
                        w = d.sld_f32(weights + 4 * n)
                        if w != d.f32(0):
                            x = d.fma(w, value(values + (first + n) * v1, i, v0, kv), x)
                        n = d.i32(n + 1)
                    result[e] = x
            d.barrier()
            first = d.i32(first + THREADS)
        if sinks != 0:
            sink = d.ld_f32(sinks + h * sink_step)
            higher = d.fmaximum(top, sink)
            keep = math.exp(top - higher)
            total = total * keep + math.exp(sink - higher)
            for e in range(parts):
                result[e] = result[e] * keep
        for e in range(parts):
            i = d.i32(me + e * THREADS)
            if i < value_size:
                x = d.f32(0)
                if total != d.f32(0):
                    x = result[e] / total
                d.st_f32(y + i * y0 + h * y1 + t * y2 + z * y3, x)

    return kernel
