"""ROPE, ROPE_BACK: rotate pairs of elements by position times frequency.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_rope_flt, ggml_mrope_cache_init, rope_yarn; ggml.c:
ggml_rope_yarn_corr_dims.
"""

from __future__ import annotations

import math

import numpy as np

from pyggml.backend.reference.values import Values, not_among, option, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import ROPE_IMROPE, ROPE_MROPE, ROPE_NORMAL, ROPE_VISION, Op, rope_pairs
from pyggml.tensor import Tensor


def yarn_ramp(
    n_dims: int, n_pairs: int, n_ctx_orig: int, freq_base: float, beta_fast: float, beta_slow: float
) -> Values:
    """For each pair how much its frequency is extrapolated: 1 for fast pairs, 0 for slow ones, linear between."""

    def pair_turning(n_rot: float) -> float:
        """The pair (a fraction) that turns n_rot times within the original context; none does in one of 0 tokens."""
        if n_ctx_orig == 0:
            return 0.0
        return n_dims * math.log(n_ctx_orig / (n_rot * 2 * math.pi)) / (2 * math.log(freq_base))

    low = max(0.0, math.floor(pair_turning(beta_fast)))
    high = min(n_dims - 1.0, math.ceil(pair_turning(beta_slow)))
    ramp: Values = np.clip((np.arange(n_pairs) - low) / max(0.001, high - low), 0.0, 1.0)
    return 1.0 - ramp


def axis_of(sector: int, sections: list[int], mode: int) -> int:
    """Which of a token's four positions turns a pair with this number in a round of sections."""
    if mode == ROPE_IMROPE:
        return sector % 3 if sector < 3 * sections[sector % 3] else 3
    ends = np.cumsum(sections[:3])
    return int(np.searchsorted(ends, sector, side="right"))


def turns(node: Tensor) -> tuple[list[int], Values]:
    """For each pair: which position of a token it follows, and its frequency before scaling."""
    n_dims, mode, base = node.param_i32(1), node.param_i32(2), node.param_f32(5)
    pairs = range(rope_pairs(n_dims, mode))
    if not mode & ROPE_MROPE:
        return [0 for _ in pairs], base ** (-2.0 * np.array(pairs) / n_dims)
    sections = [node.param_i32(i) for i in range(11, 15)]
    begins = [0, *np.cumsum(sections[:3])]
    axes, exponents, begun = [], [], [0, 0, 0, 0]
    for pair in pairs:
        sector = pair % sum(sections)
        if mode == ROPE_VISION and sector in begins:
            begun[begins.index(sector)] = pair  # each section begins anew
        axes.append(axis_of(sector, sections, mode))
        exponents.append(pair - begun[axes[-1]])
    return axes, base ** (-2.0 * np.array(exponents) / n_dims)


def angles(node: Tensor, positions: Values, factors: Values | None) -> tuple[Values, float]:
    """Radians (tokens, pairs) and the magnitude of the rotation; positions (1 or 4, tokens)."""
    n_dims, n_ctx_orig = node.param_i32(1), node.param_i32(4)
    freq_base, freq_scale, ext_factor, magnitude, beta_fast, beta_slow = (node.param_f32(i) for i in range(5, 11))
    axes, frequencies = turns(node)
    if factors is not None:
        frequencies = frequencies / factors[: len(axes)]
    extrapolated = positions[axes].T * frequencies
    interpolated = freq_scale * extrapolated
    if ext_factor == 0.0:
        return interpolated, magnitude
    mix = yarn_ramp(n_dims, len(axes), n_ctx_orig, freq_base, beta_fast, beta_slow) * ext_factor
    return interpolated * (1 - mix) + extrapolated * mix, magnitude * (1.0 + 0.1 * math.log(1.0 / freq_scale))


def refuse(node: Tensor) -> str | None:
    a, offset = source(node, 0), node.param_i32(15)
    pairs, factors = rope_pairs(node.param_i32(1), node.param_i32(2)), option(node, 2)
    if offset < 0 or offset % 2 or offset + 2 * pairs > a.ne[0]:
        return f"{2 * pairs} rotated dimensions from {offset} on, a row has {a.ne[0]}"
    if factors is not None and factors.ne[0] < pairs:
        return f"{factors.ne[0]} frequency factors, {pairs} are needed"
    n_ctx_orig = node.param_i32(4)
    base, scale, ext_factor, _, beta_fast, beta_slow = params = [node.param_f32(i) for i in range(5, 11)]
    if not all(map(math.isfinite, params)) or base <= 0.0:
        return f"frequency base {base} must be above 0, and it and {params[1:]} finite"
    if ext_factor != 0.0 and (min(scale, beta_fast, beta_slow) <= 0.0 or base == 1.0 or n_ctx_orig < 0):
        values = f"frequency base {base}, scale {scale}, betas {beta_fast} {beta_slow}, context {n_ctx_orig}"
        return f"YaRN with {values}: all must be above 0, and the base not 1"
    return not_among([GGMLType.F32, GGMLType.F16], a)


def rope(node: Tensor) -> None:
    x, factors, mode = read(source(node, 0)), option(node, 2), node.param_i32(2)
    positions = read(source(node, 1)).reshape(4 if mode & ROPE_MROPE else 1, node.ne[2])
    theta, magnitude = angles(node, positions, None if factors is None else read(factors)[0, 0, 0])
    if node.op == Op.ROPE_BACK:
        theta = -theta
    cos, sin = (f(theta)[None, :, None, :] * magnitude for f in (np.cos, np.sin))  # (1, tokens, 1, pairs)
    begin, dims = node.param_i32(15), 2 * theta.shape[1]
    if mode == ROPE_NORMAL:
        first, second = slice(begin, begin + dims, 2), slice(begin + 1, begin + dims, 2)
    else:
        first, second = slice(begin, begin + dims // 2), slice(begin + dims // 2, begin + dims)
    result = x.copy()
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., first] * sin + x[..., second] * cos
    write(node, result)


REFERENCE_OPS = dict.fromkeys((Op.ROPE, Op.ROPE_BACK), (refuse, rope))
