"""SOFT_MAX of rows, with mask, ALiBi slopes and sinks: one block of threads a row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F32, KINDS, option, refuse, refuse_types, source
from pyggml.kernels.cuda.norm import SUMS, threads_for
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64

if TYPE_CHECKING:
    from pyggml.kernels.cuda.spec import DeviceAddress
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types([F32], node, source(node, 0)) or refuse(option(node, 1), option(node, 2))


def slopes(builder: Builder, n_head: int, max_bias: float) -> DeviceAddress | int:
    """What each head multiplies the mask with (ALiBi); 0 where that is 1 (ggml-cpu/ops.cpp: soft_max_f32)."""
    if not max_bias > 0.0:
        return 0
    power = 2 ** math.floor(math.log2(n_head))
    m0, m1 = 2.0 ** (-max_bias / power), 2.0 ** (-max_bias / 2.0 / power)
    values = [m0 ** (h + 1) if h < power else m1 ** (2 * (h - power) + 1) for h in range(n_head)]
    return builder.constant(np.array(values, np.float32))


def lower(builder: Builder, node: Tensor) -> None:
    a, mask, sinks = source(node, 0), option(node, 1), option(node, 2)
    ne, kind = ((1, 1, 1, 1), 0) if mask is None else (mask.ne, KINDS[mask.type])
    args = SoftMaxArgs(
        y=place(node), a=place(a), n=extents(a.ne), mask=place(mask), k2=ne[2], k3=ne[3], kind=kind,
        slopes=slopes(builder, a.ne[2], node.param_f32(1)), sinks=0 if sinks is None else sinks.data,
        sink_step=0 if sinks is None else sinks.nb[0], by=node.param_f32(0),
    )  # fmt: skip
    builder.launch(Spec("soft_max", "soft_max"), (a.nrows,), threads_for(a.ne[0]), args, 2 * SUMS)


class SoftMaxArgs(NamedTuple):
    y: Place
    a: Place
    n: Extents
    mask: Place
    k2: i32
    k3: i32
    kind: i32
    slopes: i64
    sinks: i64
    sink_step: i64
    by: f32


def soft_max():
    import math

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access

    load, _ = access()
    lowest = d.bits_float

    @entry(SoftMaxArgs)
    def kernel(
        y, y0, y1, y2, y3, a, a0, a1, a2, a3, n0, n1, n2, mask, mask0, mask1, mask2, mask3, k2, k3, kind, slopes,
        sinks, sink_step, by,
    ):  # fmt: skip
        row = d.block_x()
        above = d.udiv(row, n1)
        i1 = d.i32(row - above * n1)
        i3 = d.udiv(above, n2)
        i2 = d.i32(above - i3 * n2)
        x = a + i1 * a1 + i2 * a2 + i3 * a3
        z = y + i1 * y1 + i2 * y2 + i3 * y3
        bias = mask + i1 * mask1 + d.urem(i2, k2) * mask2 + d.urem(i3, k3) * mask3
        slope = d.f32(1)
        if slopes != 0:
            slope = d.ld_f32(slopes + 4 * i2)
        top = lowest(-8388608)  # -inf
        nan = d.f32(0)
        i = d.i32(d.thread())
        while i < n0:
            value = d.ld_f32(x + i * a0) * by
            if mask != 0:
                value = value + slope * load(bias + i * mask0, kind)
            top = d.fmaximum(top, value)
            if value != value:
                nan = value
            d.st_f32(z + i * y0, value)
            i = d.i32(i + d.threads())
        top = d.block_max(top, d.shared())
        if sinks != 0:
            top = d.fmaximum(top, d.ld_f32(sinks + i2 * sink_step))
        total = nan
        i = d.i32(d.thread())
        while i < n0:
            value = math.exp(d.ld_f32(z + i * y0) - top)
            total = total + value
            d.st_f32(z + i * y0, value)
            i = d.i32(i + d.threads())
        total = d.block_sum(total, d.shared() + SUMS)
        if sinks != 0:
            total = total + math.exp(d.ld_f32(sinks + i2 * sink_step) - top)
        i = d.i32(d.thread())
        while i < n0:
            d.st_f32(z + i * y0, d.ld_f32(z + i * y0) / total)
            i = d.i32(i + d.threads())

    return kernel
