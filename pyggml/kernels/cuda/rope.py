"""ROPE: rotates pairs of elements by position times frequency, one thread a pair.

Angles are counted in turns, whose whole part is dropped before sine and cosine are taken: with frequencies as sums of
two f32 they are right to 1e-6 of a turn up to position 2^24. Sources: ggml-cpu/ops.cpp: rope_yarn; ggml.c:
ggml_rope_yarn_corr_dims.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F16, F32, KINDS, THREADS, blocks, option, refuse, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64
from pyggml.ops import ROPE_IMROPE, ROPE_MROPE, ROPE_NORMAL, ROPE_VISION, Op, rope_pairs
from pyggml.tensor import Tensor

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder


def why_not(node: Tensor) -> str | None:
    a, offset, factors = source(node, 0), node.param_i32(15), option(node, 2)
    pairs, n_ctx_orig = rope_pairs(node.param_i32(1), node.param_i32(2)), node.param_i32(4)
    if offset < 0 or offset % 2 or offset + 2 * pairs > a.ne[0]:
        return f"{2 * pairs} rotated dimensions from {offset} on, a row has {a.ne[0]}"
    if factors is not None and factors.ne[0] < pairs:
        return f"{factors.ne[0]} frequency factors, {pairs} are needed"
    base, scale, ext_factor, _, beta_fast, beta_slow = params = [node.param_f32(i) for i in range(5, 11)]
    if not all(map(math.isfinite, params)) or base <= 0.0:
        return f"frequency base {base} must be above 0, and it and {params[1:]} finite"
    if ext_factor != 0.0 and (min(scale, beta_fast, beta_slow) <= 0.0 or base == 1.0 or n_ctx_orig < 0):
        values = f"frequency base {base}, scale {scale}, betas {beta_fast} {beta_slow}, context {n_ctx_orig}"
        return f"YaRN with {values}: all must be above 0, and the base not 1"
    return refuse_types([F32, F16], node, a) or refuse(source(node, 1), factors)


def axes(node: Tensor) -> tuple[list[int], list[int]]:
    """For each pair which of a token's four positions turns it, and its number among those whose frequencies fall."""
    mode, n = node.param_i32(2), rope_pairs(node.param_i32(1), node.param_i32(2))
    if not mode & ROPE_MROPE:
        return [0] * n, list(range(n))
    sections = [node.param_i32(i) for i in range(11, 15)]
    begins = [0, sections[0], sum(sections[:2]), sum(sections[:3])]
    which, numbers, begun = [], [], [0, 0, 0, 0]
    for pair in range(n):
        sector = pair % sum(sections)
        if mode == ROPE_VISION and sector in begins:
            begun[begins.index(sector)] = pair  # each section begins anew
        if mode == ROPE_IMROPE:
            which.append(sector % 3 if sector < 3 * sections[sector % 3] else 3)
        else:
            which.append(sum(sector >= end for end in begins[1:]))
        numbers.append(pair - begun[which[-1]])
    return which, numbers


def rates(node: Tensor, numbers: list[int]) -> tuple[NDArray[np.float64], float]:
    """Turns that each position adds to each pair's angle, and the magnitude of the rotation."""
    n_dims, n_ctx_orig = node.param_i32(1), node.param_i32(4)
    base, scale, ext_factor, magnitude, beta_fast, beta_slow = (node.param_f32(i) for i in range(5, 11))
    frequencies = base ** (-2.0 * np.array(numbers) / n_dims)
    if ext_factor == 0.0:
        return frequencies * scale / (2 * math.pi), magnitude

    def pair_turning(n_rot: float) -> float:
        """The pair (a fraction) that turns n_rot times within the original context; none does in one of 0 tokens."""
        if n_ctx_orig == 0:
            return 0.0
        return n_dims * math.log(n_ctx_orig / (n_rot * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(pair_turning(beta_fast)))
    high = min(n_dims - 1.0, math.ceil(pair_turning(beta_slow)))
    ramp = np.clip((np.arange(len(numbers)) - low) / max(0.001, high - low), 0.0, 1.0)
    mix = (1.0 - ramp) * ext_factor
    magnitude *= 1.0 + 0.1 * math.log(1.0 / scale)
    return frequencies * (scale * (1 - mix) + mix) / (2 * math.pi), magnitude


class Turning(NamedTuple):
    """What a pair's angle is made of: positions, `position_step` apart; rates (4 words a pair), factors (0: none); the first
    rotated element, pairs of neighbours or of halves, magnitude and direction."""

    positions: i64
    position_step: i64
    rates: i64
    factors: i64
    factor_step: i64
    pairs: i32
    offset: i32
    halves: i32
    magnitude: f32
    way: f32


class Pairs(NamedTuple):
    """Of each pair: turns for each position as the sum of two F32, and which position, as I32. `magnitude` of the rotation."""

    table: NDArray[np.float32]
    content: bytes
    magnitude: float


@functools.lru_cache(64)
def pairs_of(params: bytes) -> Pairs:
    """By op_params alone: the same for all layers of a model."""
    node = Tensor(F32, (1,))
    node.op_params = params
    which, numbers = axes(node)
    turns, magnitude = rates(node, numbers)
    high = turns.astype(np.float32)
    table = np.zeros((len(turns), 4), np.float32)
    table[:, 0], table[:, 1] = high, turns - high
    table[:, 2] = np.array(which, np.int32).view(np.float32)
    table.setflags(write=False)
    return Pairs(table, table.tobytes(), float(magnitude))


def turning(builder: Builder, node: Tensor) -> Turning:
    positions, factors = source(node, 1), option(node, 2)
    table, content, magnitude = pairs_of(bytes(node.op_params))
    key = "rope", content
    constant = builder.remembered(key)
    if constant is None:
        constant = builder.constant(table)
        builder.remember(key, constant, positions)
    return Turning(
        positions=positions.data, position_step=positions.nb[0], rates=constant,
        factors=0 if factors is None else factors.data, factor_step=0 if factors is None else factors.nb[0],
        pairs=len(table), offset=node.param_i32(15), halves=int(node.param_i32(2) != ROPE_NORMAL),
        magnitude=magnitude, way=-1.0 if node.op == Op.ROPE_BACK else 1.0,
    )  # fmt: skip


def threads_a_row(n0: int, pairs: int) -> int:
    """One a pair, and one for each two of the elements that are not rotated."""
    return pairs + (n0 - 2 * pairs + 1) // 2


def lower(builder: Builder, node: Tensor) -> None:
    a, turned = source(node, 0), turning(builder, node)
    per_row = threads_a_row(a.ne[0], turned.pairs)
    n = per_row * a.nrows
    args = RopeArgs(
        y=place(node), ky=KINDS[node.type], a=place(a), ka=KINDS[a.type], n=extents(a.ne), per_row=per_row, total=n,
        turning=turned,
    )  # fmt: skip
    builder.launch(Spec("rope", "rope"), (blocks(n),), THREADS, args)


class RopeArgs(NamedTuple):
    y: Place
    ky: i32
    a: Place
    ka: i32
    n: Extents
    per_row: i32
    total: i32
    turning: Turning


def angles():
    """-> f(p, token, tokens, ...): cosine and sine of pair p's angle, times the magnitude; the rest are fields of Turning."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def angle_of(p, token, tokens, positions, position_step, rates, factors, factor_step, magnitude, way):
        high, low, axis, _ = d.ld_f32x4(rates + 16 * p)
        if factors != 0:
            factor = d.ld_f32(factors + p * factor_step)
            low = (d.fma(-(high / factor), factor, high) + low) / factor
            high = high / factor
        position = d.f32(d.ld_i32(positions + (token + d.float_bits(axis) * tokens) * position_step))
        turns = d.mul_rn(position, high)  # with the difference below it could become one fma
        rest = d.fma(position, high, -turns) + position * low
        angle = ((turns - d.f32(d.round_i32(turns))) + rest) * d.f32(6.283185307179586)
        return d.cos_turn(angle) * magnitude, d.sin_turn(angle) * magnitude * way

    return angle_of


def rope():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    load, store = access()
    place, angle_of = places(), angles()

    @entry(RopeArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, ky, a, a0, a1, a2, a3, ka, n0, n1, n2, per_row, total, positions, position_step, rates,
        factors, factor_step, pairs, offset, halves, magnitude, way,
    ):  # fmt: skip
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            p, i1, i2, i3 = place(i, per_row, n1, n2)
            x = a + i1 * a1 + i2 * a2 + i3 * a3
            z = y + i1 * y1 + i2 * y2 + i3 * y3
            if p < pairs:
                c, s = angle_of(p, i2, n2, positions, position_step, rates, factors, factor_step, magnitude, way)
                first = offset + (p if halves else 2 * p)
                second = first + (pairs if halves else 1)
                u = load(x + first * a0, ka)
                v = load(x + second * a0, ka)
                store(z + first * y0, ky, u * c - v * s)
                store(z + second * y0, ky, u * s + v * c)
            else:
                for k in range(2):
                    e = (p - pairs) * 2 + k
                    if e >= offset:
                        e = e + 2 * pairs
                    if e < n0:
                        store(z + e * y0, ky, load(x + e * a0, ka))

    return kernel
