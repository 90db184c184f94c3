"""RMS_NORM, with a MUL by weights taken along: one block of threads a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import NOWHERE, Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F32, apart, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, f32, i32

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
    args = RmsNormArgs(y=place(node), a=place(a), n=extents(a.ne), eps=node.param_f32(0), w=NOWHERE, m1=1, m2=1, m3=1)
    builder.launch(Spec("norm", "rms_norm", (0,)), (a.nrows,), threads_for(a.ne[0]), args, SUMS)


def lower_fused(builder: Builder, nodes: list[Tensor]) -> bool:
    """RMS_NORM and the MUL behind it, where its second operand is the weight. The bits are those of two launches."""
    norm, product = nodes
    a, w = source(norm, 0), source(product, 1)
    if w is norm or product.src[0] is not norm or w.ne[0] != a.ne[0] or refuse_types([F32], product, w):
        return False
    if not apart(product, a) or (product.data < w.data + w.nbytes and w.data < product.data + product.nbytes):
        return False  # the place of `a` may have been given away once the norm is done
    args = RmsNormArgs(
        y=place(product), a=place(a), n=extents(a.ne), eps=norm.param_f32(0), w=place(w), m1=w.ne[1], m2=w.ne[2], m3=w.ne[3],
    )  # fmt: skip
    builder.launch(Spec("norm", "rms_norm", (1,)), (a.nrows,), threads_for(a.ne[0]), args, SUMS)
    return True


class RmsNormArgs(NamedTuple):
    y: Place
    a: Place
    n: Extents
    eps: f32
    w: Place
    m1: i32
    m2: i32
    m3: i32


def rms_norm(weighted):
    import math

    from pyggml.kernels.cuda import device as d

    @entry(RmsNormArgs)
    def kernel(y, y0, y1, y2, y3, a, a0, a1, a2, a3, n0, n1, n2, eps, w, w0, w1, w2, w3, m1, m2, m3):
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
