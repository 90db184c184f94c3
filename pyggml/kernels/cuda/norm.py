"""RMS_NORM, with a MUL by weights taken along: one block of threads a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.kernels.cuda.layout import F32, apart, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

SUMS = 128


def why_not(node: Tensor) -> str | None:
    return refuse_types([F32], node, source(node, 0))


def threads_for(n: int) -> int:
    """A whole number of warps for rows of n elements."""
    return min(1024, max(32, -(-n // 128) * 32)) if n < 4096 else 1024


def lower(builder: Builder, node: Tensor) -> None:
    a = source(node, 0)
    args = (node.data, *node.nb, a.data, *a.nb, *a.ne[:3], node.param_f32(0), 0, 0, 0, 0, 0, 1, 1, 1)
    builder.launch(Spec("norm", "rms_norm", (0,)), (a.nrows,), threads_for(a.ne[0]), args, SUMS)


def lower_fused(builder: Builder, nodes: list[Tensor]) -> bool:
    """RMS_NORM and the MUL behind it, where its second operand is the weight. The bits are those of two launches."""
    norm, product = nodes
    a, w = source(norm, 0), source(product, 1)
    if w is norm or product.src[0] is not norm or w.ne[0] != a.ne[0] or refuse_types([F32], product, w):
        return False
    if not apart(product, a) or (product.data < w.data + w.nbytes and w.data < product.data + product.nbytes):
        return False  # the place of `a` may have been given away once the norm is done
    args = (
        product.data, *product.nb, a.data, *a.nb, *a.ne[:3], norm.param_f32(0), w.data, *w.nb, *w.ne[1:],
    )  # fmt: skip
    builder.launch(Spec("norm", "rms_norm", (1,)), (a.nrows,), threads_for(a.ne[0]), args, SUMS)
    return True


def rms_norm(weighted):
    import math

    from pyggml.kernels.cuda import device as d

    def kernel(
        y: i64, y0: i64, y1: i64, y2: i64, y3: i64, a: i64, a0: i64, a1: i64, a2: i64, a3: i64, n0: i32, n1: i32,
        n2: i32, eps: f32, w: i64, w0: i64, w1: i64, w2: i64, w3: i64, m1: i32, m2: i32, m3: i32,
    ):  # fmt: skip
        row = d.block_x()
        above = d.udiv(row, n1)
        i1 = d.i32(row - above * n1)
        i3 = d.udiv(above, n2)
        i2 = d.i32(above - i3 * n2)
        x = a + i1 * a1 + i2 * a2 + i3 * a3
        z = y + i1 * y1 + i2 * y2 + i3 * y3
        total = d.f32(0)
        i = d.i32(d.thread())
        while i < n0:
            value = d.ld_f32(x + i * a0)
            total = d.fma(value, value, total)
            i = d.i32(i + d.threads())
        total = d.block_sum(total, d.shared())
        by = d.f32(1) / math.sqrt(total / d.f32(n0) + eps)
        weights = w + d.urem(i1, m1) * w1 + d.urem(i2, m2) * w2 + d.urem(i3, m3) * w3
        i = d.i32(d.thread())
        while i < n0:
            value = d.ld_f32(x + i * a0) * by
            if weighted:
                value = value * d.ld_f32(weights + i * w0)
            d.st_f32(z + i * y0, value)
            i = d.i32(i + d.threads())

    return kernel
