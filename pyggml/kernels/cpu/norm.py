"""NORM, RMS_NORM, L2_NORM, GROUP_NORM; RMS_NORM alone or with the MUL by its weights behind it. Knows no other use.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_norm_f32, _rms_norm_f32, _l2_norm_f32, _group_norm_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.layout import layout_of, refuse_types, share_memory
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types([GGMLType.F32], node, node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    layouts = layout_of(node), layout_of(a)
    if node.op == Op.RMS_NORM:
        builder.step(Spec("norm", "rms_norm", (*layouts, "")), node, (a,))
    elif node.op == Op.GROUP_NORM:
        builder.step(Spec("norm", "group_norm", layouts), node, (a,))
    else:
        builder.step(Spec("norm", "norm", layouts), node, (a,), args=NormArgs(int(node.op == Op.NORM)))


def lower_pair(builder: Builder, norm: Tensor, product: Tensor) -> bool:
    """norm * weights in one step; False if the weights do not run along the rows, or a product's row would be written
    where another row is still to be read."""
    a = norm.src[0]
    x, weights = product.src
    assert a is not None and weights is not None
    in_place = product.data == a.data and product.nb == a.nb
    if x is not norm or weights.ne[0] != norm.ne[0] or (share_memory(product, a) and not in_place):
        return False
    if share_memory(product, weights) or refuse_types([GGMLType.F32], product, weights):
        return False
    builder.step(
        Spec("norm", "rms_norm", (layout_of(product), layout_of(a), layout_of(weights))), product, (a, weights)
    )
    return True


def _scale_of_row(kind_a):
    """-> f(x, n, stride, eps): 1 / sqrt(mean(x x) + eps). Four sums of 16 lanes, added in a fixed order."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert

    load = convert.loader(kind_a)

    @inline
    def scale(x, n, stride, eps):
        s0 = s1 = s2 = s3 = v.zero_f32()
        whole = n // 64 * 64
        for i in range(0, whole, 64):
            x0, x1 = load(x, i, 16, stride), load(x, i + 16, 16, stride)
            x2, x3 = load(x, i + 32, 16, stride), load(x, i + 48, 16, stride)
            s0, s1, s2, s3 = v.fma(x0, x0, s0), v.fma(x1, x1, s1), v.fma(x2, x2, s2), v.fma(x3, x3, s3)
        for i in range(whole, n, 16):
            y = load(x, i, min(16, n - i), stride)
            s0 = v.fma(y, y, s0)
        mean = v.hsum((s0 + s1) + (s2 + s3)) / np.float32(n)
        return np.float32(1) / v.lane(v.sqrt(v.splat_f32(mean + eps)), 0)

    return scale


def rms_norm(kind_d, kind_a, kind_w):
    """-> kernel; `kind_w`: of the weights that each row is multiplied with, "" without."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    scale_of = _scale_of_row(kind_a)
    rows, ne0, eps = record.rows("dst"), record.field("dst.ne"), record.param_f32(0)
    d, a = record.row("dst"), record.row("src0")
    store, load = convert.storer(kind_d), convert.loader(kind_a)
    nbd, nba, nbw = (record.field(n) for n in ("dst.nb", "src0.nb", "src1.nb"))
    weighted, load_w, w = kind_w != "", convert.loader(kind_w or "f32"), record.row_repeated("src1")

    def kernel(step, ith, nth, thread):
        n, count = ne0(step), rows(step)
        sd, sa, sw = nbd(step), nba(step), nbw(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            z, x = d(step, row), a(step, row)
            scale = v.splat_f32(scale_of(x, n, sa, eps(step)))
            u = w(step, row) if weighted else x
            for i in range(0, n, 16):
                k = min(16, n - i)
                y = load(x, i, k, sa) * scale
                store(z, i, y * load_w(u, i, k, sw) if weighted else y, k, sd)

    return kernel


def _moments(kind_a):
    """-> (f(x, n, stride): sum of a row, f(x, n, stride, middle): sum of the squares of what it differs from `middle`).
    Two sums of 16 lanes each, added in a fixed order."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert

    load = convert.loader(kind_a)

    @v.device
    def total(x, n, stride):
        s0 = s1 = v.zero_f32()
        whole = n // 32 * 32
        for i in range(0, whole, 32):
            s0, s1 = s0 + load(x, i, 16, stride), s1 + load(x, i + 16, 16, stride)
        for i in range(whole, n, 16):
            s0 = s0 + load(x, i, min(16, n - i), stride)
        return np.float64(v.hsum(s0 + s1))

    @v.device
    def squares(x, n, stride, middle):
        s0 = s1 = v.zero_f32()
        whole = n // 32 * 32
        for i in range(0, whole, 32):
            y0, y1 = load(x, i, 16, stride) - middle, load(x, i + 16, 16, stride) - middle
            s0, s1 = v.fma(y0, y0, s0), v.fma(y1, y1, s1)
        for i in range(whole, n, 16):
            k = min(16, n - i)
            y = v.select_part(load(x, i, k, stride) - middle, np.float32(0), k)
            s0 = v.fma(y, y, s0)
        return np.float64(v.hsum(s0 + s1))

    return total, squares


def _root():
    """-> f(x): the square root of a float64, as f32."""
    import numpy as np

    from pyggml import simd as v

    @v.device
    def root(x):
        return v.lane(v.sqrt(v.splat_f32(np.float32(x))), 0)

    return root


def _write(kind_d, kind_a):
    """-> f(z, x, n, stride_z, stride_x, middle, scale): (x - middle) * scale of a row."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert

    store, load = convert.storer(kind_d), convert.loader(kind_a)

    @v.device
    def write(z, x, n, stride_z, stride_x, middle, scale):
        for i in range(0, n, 16):
            k = min(16, n - i)
            store(z, i, (load(x, i, k, stride_x) - middle) * scale, k, stride_z)

    return write


class NormArgs(NamedTuple):
    """centred: 1 = NORM: (x - mean) / sqrt(variance + eps); 0 = L2_NORM: x / max(length, eps)."""

    centred: int


def norm(kind_d, kind_a):
    """-> kernel. Takes NormArgs."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    total, squares = _moments(kind_a)
    write, root_of = _write(kind_d, kind_a), _root()
    rows, ne0, eps = record.rows("dst"), record.field("dst.ne"), record.param_f32(0)
    d, a, nbd, nba = record.row("dst"), record.row("src0"), record.field("dst.nb"), record.field("src0.nb")
    centred = step_args.readers(NormArgs).centred

    def kernel(step, ith, nth, thread):
        n, count, sd, sa, least = ne0(step), rows(step), nbd(step), nba(step), eps(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            x = a(step, row)
            if centred(step):
                middle = v.splat_f32(np.float32(total(x, n, sa) / n))
                root = root_of(squares(x, n, sa, middle) / n + least)
            else:
                middle = v.zero_f32()
                root = root_of(squares(x, n, sa, middle))
                root = root if root > least else least
            write(d(step, row), x, n, sd, sa, middle, v.splat_f32(np.float32(1) / root))

    return kernel


def group_norm(kind_d, kind_a):
    """-> kernel: mean and variance of a group of channels, which are the planes of dimension 2."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    total, squares = _moments(kind_a)
    write, root_of = _write(kind_d, kind_a), _root()
    ne0, ne1, ne2, ne3 = (record.field("dst.ne", i) for i in range(4))
    d, a, nbd, nba = record.element("dst"), record.element("src0"), record.field("dst.nb"), record.field("src0.nb")
    groups, eps = record.param_i32(0), record.param_f32(1)

    def kernel(step, ith, nth, thread):
        n, n1, channels, sd, sa = ne0(step), ne1(step), ne2(step), nbd(step), nba(step)
        size = (channels + np.int64(groups(step)) - 1) // np.int64(groups(step))
        per_batch = (channels + size - 1) // size
        count = per_batch * ne3(step)
        for item in range(count * ith // nth, count * (ith + 1) // nth):
            i3, first = item // per_batch, item % per_batch * size * n1
            last = min(first + size * n1, channels * n1)
            elements = (last - first) * n
            whole = 0.0
            for row in range(first, last):
                whole += total(a(step, 0, row % n1, row // n1, i3), n, sa)
            middle = v.splat_f32(np.float32(whole / elements))
            spread = 0.0
            for row in range(first, last):
                spread += squares(a(step, 0, row % n1, row // n1, i3), n, sa, middle)
            scale = v.splat_f32(np.float32(1) / root_of(spread / elements + eps(step)))
            for row in range(first, last):
                i1, i2 = row % n1, row // n1
                write(d(step, 0, i1, i2, i3), a(step, 0, i1, i2, i3), n, sd, sa, middle, scale)

    return kernel
