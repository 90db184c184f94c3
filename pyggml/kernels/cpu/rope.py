"""ROPE: rotates pairs of elements by position times frequency. Knows nothing of attention.

Cosines and sines come from a table, made by a step of its own once for all nodes of a graph that have the same
positions and parameters. Angles are float64: float32 ones are off by thousandths at position 100,000.
Sources: ggml-cpu/ops.cpp: ggml_compute_forward_rope_flt, rope_yarn; ggml.c: ggml_rope_yarn_corr_dims.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.kinds import kind, refuse_types
from pyggml.ops import ROPE_NEOX, ROPE_NORMAL

if TYPE_CHECKING:
    from pyggml.backend.cpu import Builder, Scratch
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    a = node.src[0]
    assert a is not None
    mode, n_dims, offset = node.param_i32(2), node.param_i32(1), node.param_i32(15)
    if mode not in (ROPE_NORMAL, ROPE_NEOX):
        return f"mode {mode} is neither normal ({ROPE_NORMAL}) nor neox ({ROPE_NEOX})"
    if offset < 0 or offset % 2 or offset + n_dims > a.ne[0]:
        return f"{n_dims} rotated dimensions from {offset} on do not lie in {a.ne[0]}"
    base, scale, ext_factor, _, beta_fast, beta_slow = params = [node.param_f32(i) for i in range(5, 11)]
    if not all(map(math.isfinite, params)) or base <= 0.0:
        return f"frequency base {base}, or one of {params[1:]}"
    if ext_factor != 0.0 and (min(scale, beta_fast, beta_slow) <= 0.0 or base == 1.0 or node.param_i32(4) <= 0):
        return f"yarn with frequency base {base}, scale {scale}, betas {beta_fast} {beta_slow}, context {node.param_i32(4)}"
    return refuse_types([GGMLType.F32, GGMLType.F16], node, a)


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    mode = "neox" if node.param_i32(2) == ROPE_NEOX else "normal"
    builder.step(Spec("rope", "rope", (mode, kind(node), kind(a))), node, (a,), reads=(_table_of(builder, node),))


def _table_of(builder: Builder, node: Tensor) -> Scratch:
    positions, factors = node.src[1], node.src[2] if len(node.src) > 2 else None
    assert positions is not None
    n_dims, n_tokens = node.param_i32(1), positions.ne[0]
    # op_params but for the first rotated element, which is no matter of the table
    key = ("rope", node.op_params[4:12], node.op_params[16:44], id(positions), positions.nb, id(factors))
    of_factors = (*key, "factors")
    found: Scratch | None = builder.remembered(key)
    if found is not None and (factors is None or builder.remembered(of_factors) is found):
        return found
    scratch = builder.scratch(n_tokens * n_dims * 8)
    mode = "neox" if node.param_i32(2) == ROPE_NEOX else "normal"
    builder.step(
        Spec("rope", "table", (mode, int(factors is not None))), None, (positions, factors), ints=_constants(node),
        writes=(scratch,),
    )  # fmt: skip
    builder.remember(key, scratch, positions)
    if factors is not None:
        builder.remember(of_factors, scratch, factors)
    return scratch


def _constants(node: Tensor) -> list[int]:
    """float64 as their bits: ratio of successive frequencies, magnitude, yarn's share of extrapolation, where its ramp
    begins and over how many pairs it falls."""
    n_dims, n_ctx_orig = node.param_i32(1), node.param_i32(4)
    base, scale, ext_factor, magnitude, beta_fast, beta_slow = (node.param_f32(i) for i in range(5, 11))
    low, span = 0.0, 1.0
    if ext_factor != 0.0:

        def pair_turning(n_rot: float) -> float:
            """The pair (a fraction) that turns n_rot times within the original context."""
            return n_dims * math.log(n_ctx_orig / (n_rot * 2 * math.pi)) / (2 * math.log(base))

        low = max(0.0, math.floor(pair_turning(beta_fast)))
        high = min(n_dims - 1.0, math.ceil(pair_turning(beta_slow)))
        span = max(0.001, high - low)
        magnitude *= 1.0 + 0.1 * math.log(1.0 / scale)
    return [
        struct.unpack("<q", struct.pack("<d", x))[0]
        for x in (base ** (-2.0 / n_dims), magnitude, ext_factor, low, span)
    ]


def table(mode, with_factors):
    """-> kernel: for each token a row of n_dims cosines and one of n_dims sines, as the rotation wants them: in pairs
    [c c] and [-s s] for neighbours, [c ..., c ...] and [-s ..., s ...] for halves."""
    import math

    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import record
    from pyggml.steps import offset

    U = v.U
    n_tokens, position = record.field("src0.ne"), record.element("src0")
    factor = record.element("src1")
    n_dims, freq_scale = record.param_i32(1), record.param_f32(6)
    ratio, magnitude, ext_factor, low, span = (v.reader(offset("ints") + 8 * i, "f64") for i in range(5))
    out = record.field("scratch")
    neox = mode == "neox"

    def kernel(step, ith, nth):
        n, dims = n_tokens(step), np.int64(n_dims(step))
        scale, size = np.float64(freq_scale(step)), magnitude(step)
        row = U(8 * dims)
        first, last = n * ith // nth, n * (ith + 1) // nth
        if first == last:
            return
        frequency = 1.0
        for pair in range(dims // 2):
            extrapolated = frequency
            if with_factors:
                extrapolated = frequency / np.float64(v.f32_at(factor(step, pair, 0, 0, 0)))
            turn = extrapolated * scale
            if ext_factor(step) != 0.0:
                ramp = min(1.0, max(0.0, (pair - low(step)) / span(step)))
                mix = (1.0 - ramp) * ext_factor(step)
                turn = turn * (1.0 - mix) + extrapolated * mix
            at = out(step) + row * U(first) + U(4 * pair if neox else 8 * pair)
            second = U(2 * dims if neox else 4)
            sines = U(4 * dims)
            for token in range(first, last):
                angle = turn * v.i32_at(position(step, token, 0, 0, 0))
                c, s = np.float32(math.cos(angle) * size), np.float32(math.sin(angle) * size)
                v.put_f32(at, c)
                v.put_f32(at + second, c)
                v.put_f32(at + sines, -s)
                v.put_f32(at + sines + second, s)
                at += row
            frequency *= ratio(step)

    return kernel


def rope(mode, kind_d, kind_a):
    """-> kernel: x c + (partner of x) s, from the table in scratch; elements outside the rotated ones are copied."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import elements, record

    U = v.U
    rows = record.rows("dst")
    ne0, ne1, ne2 = (record.field("dst.ne", i) for i in range(3))
    d, a = record.row("dst"), record.row("src0")
    store, load = elements.storer(kind_d), elements.loader(kind_a)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")
    n_dims, first_dim, tables = record.param_i32(1), record.param_i32(15), record.field("scratch")
    f32, swap = elements.loader("f32"), v.shuffler([i ^ 1 for i in range(16)])
    move = elements.converter(kind_d, kind_a)
    neighbours = mode == "normal"

    def kernel(step, ith, nth):
        n, count = ne0(step), rows(step)
        dims, begin = np.int64(n_dims(step)), np.int64(first_dim(step))
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
