"""ROPE, ROPE_BACK: rotate pairs of elements by position times frequency. Knows nothing of attention.

Cosines and sines come from a table, made by a step of its own once for all nodes of a graph that have the same
positions and parameters. Angles are float64: float32 ones are off by thousandths at position 100,000.
Sources: ggml-cpu/ops.cpp: ggml_compute_forward_rope_flt, ggml_mrope_cache_init, rope_yarn; ggml.c:
ggml_rope_yarn_corr_dims.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import layout_of, refuse_types
from pyggml.ops import ROPE_MROPE, ROPE_NORMAL, ROPE_VISION, Op, rope_pairs

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder, Scratch
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    a = node.src[0]
    assert a is not None
    mode, n_dims, offset = node.param_i32(2), node.param_i32(1), node.param_i32(15)
    pairs = rope_pairs(n_dims, mode)
    if offset < 0 or offset % 2 or offset + 2 * pairs > a.ne[0]:
        return f"{2 * pairs} rotated dimensions from {offset} on, a row has {a.ne[0]}"
    factors = node.src[2] if len(node.src) > 2 else None
    if factors is not None and factors.ne[0] < pairs:
        return f"{factors.ne[0]} frequency factors, {pairs} are needed"
    n_ctx_orig = node.param_i32(4)
    base, scale, ext_factor, _, beta_fast, beta_slow = params = [node.param_f32(i) for i in range(5, 11)]
    if not all(map(math.isfinite, params)) or base <= 0.0:
        return f"frequency base {base} must be above 0, and it and {params[1:]} finite"
    if ext_factor != 0.0 and (min(scale, beta_fast, beta_slow) <= 0.0 or base == 1.0 or n_ctx_orig < 0):
        values = f"frequency base {base}, scale {scale}, betas {beta_fast} {beta_slow}, context {n_ctx_orig}"
        return f"YaRN with {values}: all must be above 0, and the base not 1"
    return refuse_types([GGMLType.F32, GGMLType.F16], node, a)


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    pairs = "neighbours" if node.param_i32(2) == ROPE_NORMAL else "halves"
    dims = 2 * rope_pairs(node.param_i32(1), node.param_i32(2))
    builder.step(
        Spec("rope", "rope", (pairs, layout_of(node), layout_of(a))),
        node,
        (a,),
        args=RopeArgs(dims),
        reads=(_table_of(builder, node),),
    )


def _table_of(builder: Builder, node: Tensor) -> Scratch:
    positions, factors = node.src[1], node.src[2] if len(node.src) > 2 else None
    assert positions is not None
    mode, n_tokens = node.param_i32(2), node.ne[2]
    n_pairs = rope_pairs(node.param_i32(1), mode)
    # op_params but for the first rotated element, which is no matter of the table
    key = ("rope", node.op, node.op_params[4:12], node.op_params[16:60], id(positions), positions.nb, id(factors))
    of_factors = (*key, "factors")
    found: Scratch | None = builder.remembered(key)
    if found is not None and (factors is None or builder.remembered(of_factors) is found):
        return found
    scratch = builder.scratch(n_tokens * n_pairs * 16)
    args = TableArgs(*_constants(node), n_tokens=n_tokens, n_pairs=n_pairs, sign=-1 if node.op == Op.ROPE_BACK else 1)
    builder.step(Spec("rope", "table"), None, (positions, factors), args=args, writes=(scratch,))
    builder.remember(key, scratch, positions)
    if factors is not None:
        builder.remember(of_factors, scratch, factors)
    return scratch


def _constants(node: Tensor) -> tuple[float, float, float, float, float]:
    """The first five of TableArgs."""
    n_dims, n_ctx_orig = node.param_i32(1), node.param_i32(4)
    base, scale, ext_factor, magnitude, beta_fast, beta_slow = (node.param_f32(i) for i in range(5, 11))
    low, span = 0.0, 1.0
    if ext_factor != 0.0:

        def pair_turning(n_rot: float, to: float) -> float:
            """The pair (a fraction) that turns n_rot times within the original context."""
            if n_ctx_orig == 0:
                return to
            return n_dims * math.log(n_ctx_orig / (n_rot * 2 * math.pi)) / (2 * math.log(base))

        low = max(0.0, math.floor(pair_turning(beta_fast, 0.0)))
        high = min(n_dims - 1.0, math.ceil(pair_turning(beta_slow, 0.0)))
        span = max(0.001, high - low)
        magnitude *= 1.0 + 0.1 * math.log(1.0 / scale)
    return base ** (-2.0 / n_dims), magnitude, ext_factor, low, span


class TableArgs(NamedTuple):
    """ratio: of successive frequencies. magnitude: of the rotated pairs. ext_factor: yarn's share of extrapolation. low, span:
    the pair where its ramp begins, and over how many it falls. sign: 1, or -1 to turn back."""

    ratio: float
    magnitude: float
    ext_factor: float
    low: float
    span: float
    n_tokens: int
    n_pairs: int
    sign: int


def _sections():
    """-> two f(sector, s0, s1, s2): which of a token's four positions turns a pair, by its number in a round of sections;
    the sections lie behind each other, or take pairs in turn."""
    from pyggml import simd as v

    @v.device
    def consecutive(sector, s0, s1, s2):
        if sector < s0:
            return 0
        if sector < s0 + s1:
            return 1
        return 2 if sector < s0 + s1 + s2 else 3

    @v.device
    def in_turn(sector, s0, s1, s2):
        axis = sector % 3
        size = s0 if axis == 0 else s1 if axis == 1 else s2
        return axis if sector < 3 * size else 3

    return consecutive, in_turn


def table():
    """-> kernel: for each token a row of cosines and one of sines, as the rotation wants them: in pairs [c c] and
    [-s s] for neighbours, [c ..., c ...] and [-s ..., s ...] for halves. Takes TableArgs.
    """
    import math

    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args
    from pyggml.ops import ROPE_IMROPE

    U = v.U
    position, factor, factors = record.element("src0"), record.element("src1"), record.field("src1.data")
    mode_of, freq_scale = record.param_i32(2), record.param_f32(6)
    size_0, size_1, size_2, size_3 = (record.param_i32(i) for i in range(11, 15))
    args = step_args.readers(TableArgs)
    ratio, magnitude, ext_factor, low, span = args.ratio, args.magnitude, args.ext_factor, args.low, args.span
    n_tokens, n_pairs, sign = args.n_tokens, args.n_pairs, args.sign
    out = record.field("scratch")
    consecutive, in_turn = _sections()

    def kernel(step, ith, nth, thread):
        n, pairs, mode = n_tokens(step), n_pairs(step), np.int64(mode_of(step))
        scale, size, turn_back = np.float64(freq_scale(step)), magnitude(step), sign(step) < 0
        s0, s1, s2 = np.int64(size_0(step)), np.int64(size_1(step)), np.int64(size_2(step))
        round_size = max(1, s0 + s1 + s2 + size_3(step))
        neighbours = mode == ROPE_NORMAL
        second = U(4 if neighbours else 4 * pairs)
        sines = U(8 * pairs)
        first, last = n * ith // nth, n * (ith + 1) // nth
        if first == last:
            return
        f0 = f1 = f2 = f3 = 1.0  # the frequency of each of the four positions
        for pair in range(pairs):
            axis = 0
            frequency = f0
            if mode & ROPE_MROPE:
                sector = pair % round_size
                if mode == ROPE_VISION:  # each section begins anew
                    if sector == 0:
                        f0 = 1.0
                    elif sector == s0:
                        f1 = 1.0
                    elif sector == s0 + s1:
                        f2 = 1.0
                    elif sector == s0 + s1 + s2:
                        f3 = 1.0
                if mode == ROPE_IMROPE:
                    axis = in_turn(sector, s0, s1, s2)
                else:
                    axis = consecutive(sector, s0, s1, s2)
                frequency = f0 if axis == 0 else f1 if axis == 1 else f2 if axis == 2 else f3
            extrapolated = frequency
            if factors(step) != 0:
                extrapolated = frequency / np.float64(v.f32_at(factor(step, pair, 0, 0, 0)))
            turn = extrapolated * scale
            if ext_factor(step) != 0.0:
                ramp = min(1.0, max(0.0, (pair - low(step)) / span(step)))
                mix = (1.0 - ramp) * ext_factor(step)
                turn = turn * (1.0 - mix) + extrapolated * mix
            at = out(step) + sines * U(2 * first) + U(8 * pair if neighbours else 4 * pair)
            for token in range(first, last):
                angle = turn * v.i32_at(position(step, axis * n + token, 0, 0, 0))
                c, s = np.float32(math.cos(angle) * size), np.float32(math.sin(angle) * size)
                s = -s if turn_back else s
                v.put_f32(at, c)
                v.put_f32(at + second, c)
                v.put_f32(at + sines, -s)
                v.put_f32(at + sines + second, s)
                at += sines * U(2)
            f0 *= ratio(step)
            f1 *= ratio(step)
            f2 *= ratio(step)
            f3 *= ratio(step)

    return kernel


class RopeArgs(NamedTuple):
    """dims: rotated elements of a row."""

    dims: int


def rope(pairs, kind_d, kind_a):
    """-> kernel: x c + (partner of x) s, from the table in scratch; elements outside the rotated ones are copied.

    `pairs`: "neighbours" or "halves". Takes RopeArgs.
    """
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record, step_args

    U = v.U
    rows = record.rows("dst")
    ne0, ne1, ne2 = (record.field("dst.ne", i) for i in range(3))
    d, a = record.row("dst"), record.row("src0")
    store, load = convert.storer(kind_d), convert.loader(kind_a)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")
    n_dims, first_dim, tables = step_args.readers(RopeArgs).dims, record.param_i32(15), record.field("scratch")
    f32, swap = convert.loader("f32"), v.shuffler([i ^ 1 for i in range(16)])
    move = convert.converter(kind_d, kind_a)
    neighbours = pairs == "neighbours"

    def kernel(step, ith, nth, thread):
        n, count = ne0(step), rows(step)
        dims, begin = n_dims(step), np.int64(first_dim(step))
        half = dims // 2
        sd, sa = nbd(step), nba(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            z, x = d(step, row), a(step, row)
            cosines = tables(step) + U(row // ne1(step) % ne2(step) * dims * 8)
            sines = cosines + U(4 * dims)
            if z != x and dims < n:
                move(z, sd, x, sa, 0, begin)
                move(z, sd, x, sa, begin + dims, n)
            if neighbours:
                for i in range(0, dims, 16):
                    k = min(16, dims - i)
                    y = load(x, begin + i, k, sa)
                    store(z, begin + i, y * f32(cosines, i, k, 4) + swap(y) * f32(sines, i, k, 4), k, sd)
            else:
                for i in range(0, half, 16):
                    k = min(16, half - i)
                    p, q = load(x, begin + i, k, sa), load(x, begin + half + i, k, sa)
                    c, s = f32(cosines, i, k, 4), f32(sines, half + i, k, 4)
                    store(z, begin + i, p * c - q * s, k, sd)
                    store(z, begin + half + i, p * s + q * c, k, sd)

    return kernel
