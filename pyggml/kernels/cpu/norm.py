"""RMS_NORM, alone or with the MUL by its weights behind it. Knows no other norm.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_rms_norm_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.kinds import kind, refuse_types, share_memory

if TYPE_CHECKING:
    from pyggml.backend.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types([GGMLType.F32], node, node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    builder.step(Spec("norm", "rms_norm", (kind(node), kind(a), "")), node, (a,))


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
    builder.step(Spec("norm", "rms_norm", (kind(product), kind(a), kind(weights))), product, (a, weights))
    return True


def _scale_of_row(kind_a):
    """-> f(x, n, stride, eps): 1 / sqrt(mean(x x) + eps). Four sums of 16 lanes, added in a fixed order."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import elements

    load = elements.loader(kind_a)

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
    from pyggml.kernels.cpu import elements, record

    scale_of = _scale_of_row(kind_a)
    rows, ne0, eps = record.rows("dst"), record.field("dst.ne"), record.param_f32(0)
    d, a = record.row("dst"), record.row("src0")
    store, load = elements.storer(kind_d), elements.loader(kind_a)
    nbd, nba, nbw = (record.field(n) for n in ("dst.nb", "src0.nb", "src1.nb"))
    weighted, load_w, w = kind_w != "", elements.loader(kind_w or "f32"), record.row_repeated("src1")

    def kernel(step, ith, nth):
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
