"""ROPE: rotates pairs of elements by position times frequency. Knows nothing of attention.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_rope_flt, rope_yarn; ggml.c: ggml_rope_yarn_corr_dims.
"""

from __future__ import annotations

import math

import numpy as np

from pyggml.backend.reference.values import Values, not_among, option, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import ROPE_NEOX, ROPE_NORMAL, Op
from pyggml.tensor import Tensor


def yarn_ramp(n_dims: int, n_ctx_orig: int, freq_base: float, beta_fast: float, beta_slow: float) -> Values:
    """For each pair how much its frequency is extrapolated: 1 for fast pairs, 0 for slow ones, linear between."""

    def pair_turning(n_rot: float) -> float:
        """The pair (a fraction) that turns n_rot times within the original context."""
        return n_dims * math.log(n_ctx_orig / (n_rot * 2 * math.pi)) / (2 * math.log(freq_base))

    low = max(0.0, math.floor(pair_turning(beta_fast)))
    high = min(n_dims - 1.0, math.ceil(pair_turning(beta_slow)))
    pairs = np.arange(n_dims // 2)
    ramp: Values = np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
    return 1.0 - ramp


def angles(node: Tensor, positions: Values, factors: Values | None) -> tuple[Values, float]:
    """Radians (positions, pairs) and the magnitude of the rotation."""
    n_dims, n_ctx_orig = node.param_i32(1), node.param_i32(4)
    freq_base, freq_scale, ext_factor, magnitude, beta_fast, beta_slow = (node.param_f32(i) for i in range(5, 11))
    frequencies = freq_base ** (-2.0 * np.arange(n_dims // 2) / n_dims)
    if factors is not None:
        frequencies = frequencies / factors[: n_dims // 2]
    extrapolated = positions[:, None] * frequencies
    interpolated = freq_scale * extrapolated
    if ext_factor == 0.0:
        return interpolated, magnitude
    mix = yarn_ramp(n_dims, n_ctx_orig, freq_base, beta_fast, beta_slow) * ext_factor
    return interpolated * (1 - mix) + extrapolated * mix, magnitude * (1.0 + 0.1 * math.log(1.0 / freq_scale))


def refuse(node: Tensor) -> str | None:
    a, mode, n_dims, offset = source(node, 0), node.param_i32(2), node.param_i32(1), node.param_i32(15)
    if mode not in (ROPE_NORMAL, ROPE_NEOX):
        return f"mode {mode} is neither normal ({ROPE_NORMAL}) nor neox ({ROPE_NEOX})"
    if offset < 0 or offset % 2 or offset + n_dims > a.ne[0]:
        return f"{n_dims} rotated dimensions from {offset} on do not lie in {a.ne[0]}"
    base, scale, ext_factor, _, beta_fast, beta_slow = params = [node.param_f32(i) for i in range(5, 11)]
    if not all(map(math.isfinite, params)) or base <= 0.0:
        return f"frequency base {base}, or one of {params[1:]}"
    if ext_factor != 0.0 and (min(scale, beta_fast, beta_slow) <= 0.0 or base == 1.0 or node.param_i32(4) <= 0):
        return f"yarn with frequency base {base}, scale {scale}, betas {beta_fast} {beta_slow}, context {node.param_i32(4)}"
    return not_among([GGMLType.F32, GGMLType.F16], a)


def rope(node: Tensor) -> None:
    x, positions = read(source(node, 0)), read(source(node, 1)).reshape(-1)
    factors = option(node, 2)
    n_dims, neox, offset = node.param_i32(1), node.param_i32(2) == ROPE_NEOX, node.param_i32(15)
    theta, magnitude = angles(node, positions, None if factors is None else read(factors)[0, 0, 0])
    cos, sin = (f(theta)[None, :, None, :] * magnitude for f in (np.cos, np.sin))  # (1, tokens, 1, pairs)
    if neox:
        first, second = slice(offset, offset + n_dims // 2), slice(offset + n_dims // 2, offset + n_dims)
    else:
        first, second = slice(offset, offset + n_dims, 2), slice(offset + 1, offset + n_dims, 2)
    result = x.copy()
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., first] * sin + x[..., second] * cos
    write(node, result)


LAWS = {Op.ROPE: (refuse, rope)}
