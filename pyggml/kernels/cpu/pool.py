"""POOL_1D, POOL_2D: the largest element of each window, or the average. One kernel: a row's windows have a height of 1.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_pool_1d_ksp, ggml_compute_forward_pool_2d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import layout_of, refuse_types
from pyggml.ops import Op, PoolOp

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types([GGMLType.F32, GGMLType.F16], node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    kind = node.param_i32(0)
    if node.op == Op.POOL_1D:
        k0, s0, p0 = (node.param_i32(i) for i in (1, 2, 3))
        args = PoolArgs(k0, 1, s0, 1, p0, 0, 0)
    else:
        k0, k1, s0, s1, p0, p1 = (node.param_i32(i) for i in range(1, 7))
        args = PoolArgs(k0, k1, s0, s1, p0, p1, k0 * k1)
    name = "largest" if kind == PoolOp.MAX else "average"
    builder.step(Spec("pool", name, (layout_of(a),)), node, (a,), args=args)


class PoolArgs(NamedTuple):
    """k: elements of a window, s: how far windows are apart, p: padding, in dimensions 0 and 1. divisor: of a window's sum, 0: the
    number of elements inside."""

    k0: int
    k1: int
    s0: int
    s1: int
    p0: int
    p1: int
    divisor: int


def largest(kind_a):
    """-> kernel. Takes PoolArgs. A window with a NaN in it is gone through element by element: what comes before is forgotten."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert

    U = v.U
    load, lowest = convert.loader(kind_a), np.float32(np.finfo(np.float32).min)

    @v.device
    def in_order(at, next_row, stride, height, width):
        found = v.splat_f32(lowest)
        for y in range(height):
            for x in range(width):
                value = load(at + U(y * next_row), x, 1, stride)
                found = v.where_less(value, found, found, value)
        return v.lane(found, 0)

    @v.device
    def reduce(at, next_row, stride, height, width, divisor):
        found, odd = v.splat_f32(lowest), 0
        for y in range(height):
            row = at + U(y * next_row)
            for x in range(0, width, 16):
                n = min(16, width - x)
                value = v.select_part(load(row, x, n, stride), lowest, n)
                odd |= v.nan_bits(value, value)
                found = v.maximum(value, found)
        if odd != 0:
            return in_order(at, next_row, stride, height, width)
        return v.hmax(found)

    return _windows(reduce)


def average(kind_a):
    """-> kernel. Takes PoolArgs."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert

    U = v.U
    load = convert.loader(kind_a)

    @v.device
    def reduce(at, next_row, stride, height, width, divisor):
        total, count = v.zero_f32(), divisor
        if count == 0:
            count = max(1, height * width)
        for y in range(height):
            row = at + U(y * next_row)
            for x in range(0, width, 16):
                total = total + load(row, x, min(16, width - x), stride)
        return v.hsum(total) / np.float32(count)

    return _windows(reduce)


def _windows(reduce):
    """-> kernel that puts what `reduce` makes of each window's part inside of the source."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    k0_of, k1_of, s0_of, s1_of, p0_of, p1_of, divisor_of = step_args.readers(PoolArgs)
    n0, n1, n2 = (record.field("dst.ne", i) for i in range(3))
    m0, m1 = record.field("src0.ne"), record.field("src0.ne", 1)
    rows, d, a = record.rows("dst"), record.row("dst"), record.element("src0")
    nbd, nba, nba1 = record.field("dst.nb"), record.field("src0.nb"), record.field("src0.nb", 1)
    aborted = record.aborted()

    def kernel(step, ith, nth, thread):
        n, stride, next_row = n0(step), nba(step), nba1(step)
        count = rows(step) * n
        item, end = count * ith // nth, count * (ith + 1) // nth
        while item < end:
            row = item // n
            i2, i3 = row // n1(step) % n2(step), row // n1(step) // n2(step)
            y = row % n1(step) * s1_of(step) - p1_of(step)
            y_begin, y_end = max(y, 0), min(y + k1_of(step), m1(step))
            height, to = max(0, y_end - y_begin), d(step, row)
            first, last = item - row * n, min(end - row * n, n)
            for i in range(first, last):
                if aborted(step):
                    return
                x = i * s0_of(step) - p0_of(step)
                x_begin, x_end = max(x, 0), min(x + k0_of(step), m0(step))
                width = max(0, x_end - x_begin)
                at = a(step, x_begin, y_begin, i2, i3)
                v.put_f32(to + U(i * nbd(step)), reduce(at, next_row, stride, height, width, divisor_of(step)))
            item = row * n + last

    return kernel
