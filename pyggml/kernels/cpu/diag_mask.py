"""DIAG_MASK_INF and DIAG_MASK_ZERO: rows copied up to a diagonal, -inf or 0 behind it. Knows no soft max.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_diag_mask_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import layout_of, refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types([GGMLType.F32], node, node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    infinite = int(node.op == Op.DIAG_MASK_INF)
    builder.step(Spec("diag_mask", "diag_mask", (layout_of(node), layout_of(a))), node, (a,), args=MaskArgs(infinite))


class MaskArgs(NamedTuple):
    """infinite: 1 = what is hidden becomes -inf, 0 = it becomes 0."""

    infinite: int


def diag_mask(kind_d, kind_a):
    """-> kernel. Takes MaskArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record, step_args

    np = v.np
    load, store = convert.loader(kind_a), convert.storer(kind_d)
    rows, ne0, ne1 = record.rows("dst"), record.field("dst.ne"), record.field("dst.ne", 1)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")
    d, a = record.row("dst"), record.row("src0")
    n_past, infinite = record.param_i32(0), step_args.readers(MaskArgs).infinite
    numbers = v.constant("f32", [float(i) for i in range(16)])

    def kernel(step, ith, nth, thread):
        n, count = ne0(step), rows(step)
        hidden = v.splat_f32(-np.inf if infinite(step) != 0 else np.float32(0))
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            z, x = d(step, row), a(step, row)
            seen = np.int64(n_past(step)) + row % ne1(step) + 1
            for i in range(0, n, 16):
                k = min(16, n - i)
                t = hidden
                if i < seen:
                    left = v.splat_f32(np.float32(min(16, seen - i)))
                    t = v.where_less(numbers(), left, load(x, i, k, nba(step)), hidden)
                store(z, i, t, k, nbd(step))

    return kernel
