"""SOFT_MAX of rows, with mask, ALiBi slopes and sinks, and its gradient. Knows nothing of queries and keys.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_soft_max_f32, ggml_compute_forward_soft_max_ext_back_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.layout import layout_of, refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    others = node.src[:2] if node.op == Op.SOFT_MAX_BACK else node.src[:1]
    return refuse_types([GGMLType.F32], node, *others)


def lower(builder: Builder, node: Tensor) -> None:
    if node.op == Op.SOFT_MAX_BACK:
        dy, y = node.src[:2]
        assert dy is not None and y is not None
        builder.step(Spec("soft_max", "soft_max_back", (layout_of(node), layout_of(dy), layout_of(y))), node, (dy, y))
        return
    a, mask, sinks = (*node.src, None, None)[:3]
    assert a is not None
    max_bias = node.param_f32(1)
    alibi = mask is not None and max_bias > 0.0
    spec = Spec(
        "soft_max",
        "soft_max",
        (layout_of(node), layout_of(a), layout_of(mask) if mask else "", int(alibi), int(sinks is not None)),
    )
    builder.step(spec, node, (a, mask, sinks), args=alibi_bases(a.ne[2], max_bias if alibi else 0.0))


class AlibiArgs(NamedTuple):
    """The slope of head h is m0^(h + 1) below n, m1^(2 (h - n) + 1) from n on."""

    n: int
    m0: float
    m1: float


def alibi_bases(n_head: int, max_bias: float) -> AlibiArgs:
    n = 1 << (n_head.bit_length() - 1)
    return AlibiArgs(n, 2.0 ** (-max_bias / n), 2.0 ** (-max_bias / 2.0 / n))


def slope_of_head():
    """-> f(step, head): its ALiBi slope, from AlibiArgs."""
    import numpy as np

    from pyggml.kernels.cpu import step_args

    n_at, m0, m1 = step_args.readers(AlibiArgs)

    @inline
    def slope(step, head):
        n = n_at(step)
        base, power = (m0(step), head + 1) if head < n else (m1(step), 2 * (head - n) + 1)
        product = 1.0
        for _ in range(power):
            product *= base
        return np.float32(product)

    return slope


def soft_max(kind_d, kind_a, kind_m, alibi, with_sinks):
    """-> kernel: three passes over a row: greatest value, exponentials and their sum, division."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    rows = record.rows("dst")
    ne0, ne1, ne2 = (record.field("dst.ne", i) for i in range(3))
    d, a, m = record.row("dst"), record.row("src0"), _mask_row()
    load, load_d, store = convert.loader(kind_a), convert.loader(kind_d), convert.storer(kind_d)
    masked = kind_m != ""
    load_m = convert.loader(kind_m or "f32")
    nbd, nba, nbm = (record.field(n) for n in ("dst.nb", "src0.nb", "src1.nb"))
    factor, slope_of, sink_at = record.param_f32(0), slope_of_head(), record.element("src2")
    lowest = v.constant("f32", [-np.inf] * 16)
    numbers = v.constant("f32", [float(i) for i in range(16)])

    def kernel(step, ith, nth, thread):
        n, count = ne0(step), rows(step)
        sd, sa, sm = nbd(step), nba(step), nbm(step)
        scale = v.splat_f32(factor(step))
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            head = row // ne1(step) % ne2(step)
            z, x = d(step, row), a(step, row)
            y = x
            slope = np.float32(1)
            if masked:
                y = m(step, row)
                if alibi:
                    slope = slope_of(step, head)
            w = v.splat_f32(slope)
            top = lowest()
            for i in range(0, n, 16):
                k = min(16, n - i)
                t = load(x, i, k, sa) * scale
                if masked:
                    t = t + load_m(y, i, k, sm) * w
                store(z, i, t, k, sd)
                if k < 16:  # lanes past the end do not count
                    t = v.where_less(numbers(), v.splat_f32(np.float32(k)), t, lowest())
                top = v.maximum(t, top)
            greatest = v.hmax(top)
            sink = np.float32(0)
            if with_sinks:
                sink = v.f32_at(sink_at(step, head, 0, 0, 0))
                greatest = sink if sink > greatest else greatest
            g = v.splat_f32(greatest)
            s0 = v.zero_f32()
            for i in range(0, n, 16):
                k = min(16, n - i)
                e = v.exp(load_d(z, i, k, sd) - g)
                store(z, i, e, k, sd)
                if k < 16:
                    e = v.where_less(numbers(), v.splat_f32(np.float32(k)), e, v.zero_f32())
                s0 = s0 + e
            total = v.hsum(s0)
            if with_sinks:
                total += v.lane(v.exp(v.splat_f32(sink - greatest)), 0)
            share = v.splat_f32(np.float32(1) / total)
            for i in range(0, n, 16):
                k = min(16, n - i)
                store(z, i, load_d(z, i, k, sd) * share, k, sd)

    return kernel


def _mask_row():
    """-> f(step, row of dst): address of the mask's row; it repeats in dimensions 2 and 3 and may have surplus rows."""
    from pyggml.kernels.cpu import record

    n1, n2 = record.field("dst.ne", 1), record.field("dst.ne", 2)
    m2, m3 = record.field("src1.ne", 2), record.field("src1.ne", 3)
    at = record.element("src1")

    @inline
    def address(step, row):
        i2 = row // n1(step)
        return at(step, 0, row % n1(step), i2 % n2(step) % m2(step), i2 // n2(step) % m3(step))

    return address


def soft_max_back(kind_d, kind_dy, kind_y):
    """-> kernel: (dy - dot(y, dy)) y scale, row by row."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    rows, ne0 = record.rows("dst"), record.field("dst.ne")
    d, dy_row, y_row = record.row("dst"), record.row("src0"), record.row("src1")
    load_dy, load_y, store = convert.loader(kind_dy), convert.loader(kind_y), convert.storer(kind_d)
    nbd, nbg, nby = (record.field(n) for n in ("dst.nb", "src0.nb", "src1.nb"))
    factor = record.param_f32(0)

    def kernel(step, ith, nth, thread):
        n, count = ne0(step), rows(step)
        sd, sg, sy = nbd(step), nbg(step), nby(step)
        scale = v.splat_f32(factor(step))
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            z, g, y = d(step, row), dy_row(step, row), y_row(step, row)
            sums = v.zero_f32()
            for i in range(0, n, 16):
                k = min(16, n - i)
                sums = v.fma(load_dy(g, i, k, sg), load_y(y, i, k, sy), sums)
            dot = v.splat_f32(v.hsum(sums))
            for i in range(0, n, 16):
                k = min(16, n - i)
                store(z, i, (load_dy(g, i, k, sg) - dot) * load_y(y, i, k, sy) * scale, k, sd)

    return kernel
