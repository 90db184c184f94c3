"""NORM, RMS_NORM, L2_NORM: one block of threads a row; GROUP_NORM: one a group of channels. RMS_NORM takes a MUL by weights
along."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.activations import wanted
from pyggml.kernels.cuda.launch_args import NOWHERE, Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F32, apart, blocks, refuse_types, source
from pyggml.kernels.cuda.normed import Normed, normed
from pyggml.kernels.cuda.spec import Spec, f32, i32
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

SUMS = 128


def why_not(node: Tensor) -> str | None:
    return refuse_types([F32], node, source(node, 0))


NORMS = (Op.NORM, Op.L2_NORM)


def threads_for(n: int) -> int:
    """A whole number of warps for rows of n elements."""
    return min(1024, max(32, -(-n // 128) * 32)) if n < 4096 else 1024


def lower(builder: Builder, node: Tensor) -> None:
    a = source(node, 0)
    if node.op in NORMS:
        plain = NormArgs(y=place(node), a=place(a), n=extents(a.ne), eps=node.param_f32(0))
        spec = Spec("norm", "norm" if node.op == Op.NORM else "l2_norm")
        builder.launch(spec, (a.nrows,), threads_for(a.ne[0]), plain, 2 * SUMS)
        return
    if node.op == Op.GROUP_NORM:
        each = blocks(a.ne[2], node.param_i32(0))
        group = GroupNormArgs(y=place(node), a=place(a), n=extents(a.ne), each=each, eps=node.param_f32(1))
        threads = threads_for(a.ne[0] * a.ne[1] * min(each, a.ne[2]))
        builder.launch(Spec("norm", "group_norm"), (blocks(a.ne[2], each), a.ne[3]), threads, group, 2 * SUMS)
        return
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
    if w.nelements == w.ne[0] and w.nb[0] == 4 and a.nb[0] == 4 and product.nb[0] == 4:
        made = wanted(builder, product)
        if made is not None:
            threads = threads_for(a.ne[0])
            rest = normed(product.data, w.data, norm.param_f32(0), threads, made)
            rows = NormedRowsArgs(a=place(a), y=place(product), n=extents(a.ne), rest=rest)
            builder.launch(Spec("norm", "normed_rows"), (a.nrows,), threads, rows, SUMS)
            return True
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


class NormedRowsArgs(NamedTuple):
    """Of `rest` z is the first row's place."""

    a: Place
    y: Place
    n: Extents
    rest: Normed


def normed_rows():
    """Dense rows, and their bytes."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import places
    from pyggml.kernels.cuda.normed import row

    place, norm_row = places(), row()

    @entry(NormedRowsArgs)
    def kernel(
        a, a0, a1, a2, a3, y, y0, y1, y2, y3, n0, n1, n2, z, weights, eps, wide, q, q_scales, q_step,
    ):  # fmt: skip
        _, i1, i2, i3 = place(d.i32(d.block_x()), 1, n1, n2)
        at = d.i64(d.block_x()) * q_step
        norm_row(
            a + i1 * a1 + i2 * a2 + i3 * a3, n0, y + i1 * y1 + i2 * y2 + i3 * y3, weights, eps, wide, q + at,
            q_scales + (at >> 2), q_step, d.shared(),
        )  # fmt: skip

    return kernel


class NormArgs(NamedTuple):
    y: Place
    a: Place
    n: Extents
    eps: f32


def norm():
    """Less the mean, over the standard deviation."""
    import math

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import places

    place = places()

    @entry(NormArgs)
    def kernel(y, y0, y1, y2, y3, a, a0, a1, a2, a3, n0, n1, n2, eps):
        _, i1, i2, i3 = place(d.i32(d.block_x()), 1, n1, n2)
        x = a + i1 * a1 + i2 * a2 + i3 * a3
        z = y + i1 * y1 + i2 * y2 + i3 * y3
        total = d.f32(0)
        i = d.i32(d.thread())
        while i < n0:
            total = total + d.ld_f32(x + i * a0)
            i = d.i32(i + d.threads())
        mean = d.block_sum(total, d.shared()) / d.f32(n0)
        total = d.f32(0)
        i = d.i32(d.thread())
        while i < n0:
            value = d.ld_f32(x + i * a0) - mean
            total = d.fma(value, value, total)
            i = d.i32(i + d.threads())
        by = d.f32(1) / math.sqrt(d.block_sum(total, d.shared() + SUMS) / d.f32(n0) + eps)
        i = d.i32(d.thread())
        while i < n0:
            d.st_f32(z + i * y0, (d.ld_f32(x + i * a0) - mean) * by)
            i = d.i32(i + d.threads())

    return kernel


def l2_norm():
    """Over the length, or eps if that is less."""
    import math

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import places

    place = places()

    @entry(NormArgs)
    def kernel(y, y0, y1, y2, y3, a, a0, a1, a2, a3, n0, n1, n2, eps):
        _, i1, i2, i3 = place(d.i32(d.block_x()), 1, n1, n2)
        x = a + i1 * a1 + i2 * a2 + i3 * a3
        z = y + i1 * y1 + i2 * y2 + i3 * y3
        total = d.f32(0)
        i = d.i32(d.thread())
        while i < n0:
            value = d.ld_f32(x + i * a0)
            total = d.fma(value, value, total)
            i = d.i32(i + d.threads())
        length = d.fmaximum(eps, math.sqrt(d.block_sum(total, d.shared())))  # a NaN is dropped
        i = d.i32(d.thread())
        while i < n0:
            d.st_f32(z + i * y0, d.ld_f32(x + i * a0) / length)
            i = d.i32(i + d.threads())

    return kernel


class GroupNormArgs(NamedTuple):
    """`each`: channels of a group; the last one may have fewer."""

    y: Place
    a: Place
    n: Extents
    each: i32
    eps: f32


def group_norm():
    import math

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import places

    place = places()

    @entry(GroupNormArgs)
    def kernel(y, y0, y1, y2, y3, a, a0, a1, a2, a3, n0, n1, n2, each, eps):
        first = d.i32(d.block_x() * each)
        channels = min(each, d.i32(n2 - first))
        x = a + first * a2 + d.block_y() * a3
        z = y + first * y2 + d.block_y() * y3
        n = d.i32(n0 * n1 * channels)
        total = d.f32(0)
        i = d.i32(d.thread())
        while i < n:
            i0, i1, i2, _ = place(i, n0, n1, channels)
            total = total + d.ld_f32(x + i0 * a0 + i1 * a1 + i2 * a2)
            i = d.i32(i + d.threads())
        mean = d.block_sum(total, d.shared()) / d.f32(n)
        total = d.f32(0)
        i = d.i32(d.thread())
        while i < n:
            i0, i1, i2, _ = place(i, n0, n1, channels)
            value = d.ld_f32(x + i0 * a0 + i1 * a1 + i2 * a2) - mean
            total = d.fma(value, value, total)
            i = d.i32(i + d.threads())
        by = d.f32(1) / math.sqrt(d.block_sum(total, d.shared() + SUMS) / d.f32(n) + eps)
        i = d.i32(d.thread())
        while i < n:
            i0, i1, i2, _ = place(i, n0, n1, channels)
            value = (d.ld_f32(x + i0 * a0 + i1 * a1 + i2 * a2) - mean) * by
            d.st_f32(z + i0 * y0 + i1 * y1 + i2 * y2, value)
            i = d.i32(i + d.threads())

    return kernel
