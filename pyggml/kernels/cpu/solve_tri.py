"""SOLVE_TRI: forward substitution, 16 columns of right-hand sides at once. Knows no other matrices.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_solve_tri_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import refuse_types

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    if not node.is_contiguous:
        return "the result is not contiguous"
    return refuse_types([GGMLType.F32], node)


def lower(builder: Builder, node: Tensor) -> None:
    builder.step(Spec("solve_tri", "solve_tri"), node, node.src[:2])


def solve_tri():
    """-> kernel: x_i = (b_i - sum over t < i of a_it x_t) / a_ii, rows i in order."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    U = v.U
    load, store = convert.loader("f32"), convert.storer("f32")
    k, n, n2, n3 = (record.field("dst.ne", i) for i in range(4))
    x_at, a_at, b_at = record.element("dst"), record.element("src0"), record.element("src1")

    def kernel(step, ith, nth, thread):
        columns, size = k(step), n(step)
        groups = (columns + 15) // 16
        count = groups * n2(step) * n3(step)
        for item in range(count * ith // nth, count * (ith + 1) // nth):
            batch, column = item // groups, item % groups * 16
            i2, i3 = batch % n2(step), batch // n2(step)
            x, a, b = x_at(step, 0, 0, i2, i3), a_at(step, 0, 0, i2, i3), b_at(step, 0, 0, i2, i3)
            part = min(16, columns - column)
            for i in range(size):
                row = a + U(4 * i * size)
                known = v.zero_f32()
                for t in range(i):
                    known = v.fma(v.broadcast_f32(row + U(4 * t)), load(x, t * columns + column, part, 4), known)
                y = (load(b, i * columns + column, part, 4) - known) / v.broadcast_f32(row + U(4 * i))
                store(x, i * columns + column, y, part, 4)

    return kernel
