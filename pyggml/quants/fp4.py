"""Floats of four and eight bits, as MXFP4 and NVFP4 have them.

Sources: ggml-impl.h ggml_e8m0_to_fp32_half, ggml_ue4m3_to_fp32, ggml_fp32_to_ue4m3; ggml-quants.c best_index_mxfp4.
"""

import numpy as np

from pyggml.quants.base import Bytes, Floats

LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the value of each E2M1 number (kvalues_mxfp4 of ggml-common.h)."""

E8M0: Floats = np.concatenate(
    [np.array([0x00200000, 0x00400000], np.uint32), np.arange(1, 255, dtype=np.uint32) << np.uint32(23)]
).view(np.float32)
"""Half of each power of two that an exponent byte stands for."""


def _e4m3(x: int) -> float:
    if x in (0, 0x7F):
        return 0.0
    exponent, mantissa = (x >> 3) & 15, x & 7
    raw = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return raw / 2


UE4M3: Floats = np.array([_e4m3(x) for x in range(256)], np.float32)
"""Half of each number of four exponent and three mantissa bits; the highest bit does not count."""


def to_ue4m3(x: Floats) -> Bytes:
    """The nearest of UE4M3's numbers, halves upwards; beyond the largest that one, and 0 for what is not positive."""
    positive = x > 0
    x = np.minimum(np.where(positive, x, np.float32(1)), np.float32(448))
    bits = x.view(np.int32)
    exponent = ((bits >> 23) & 255) - 127 + 7
    low = np.minimum((x * np.float32(512) + np.float32(0.5)).astype(np.int32), 7)
    mantissa = ((bits >> 20) & 7) + ((bits >> 19) & 1)
    normal = (exponent << 3) + mantissa  # a mantissa of 8 raises the exponent
    number = np.where(exponent <= 0, low, np.where((exponent >= 15) | (normal >= 15 << 3), 0x7E, normal))
    return np.where(positive, number, 0).astype(np.uint8)


def nearest_level(x: Floats, d: Floats) -> Bytes:
    """The first of the levels that is nearest to x / d; 0 where nothing can be compared."""
    best = np.zeros(x.shape, np.uint8)
    least = np.abs(LEVELS[0] * d - x)
    for i in range(1, 16):
        error = np.abs(np.float32(LEVELS[i]) * d - x)
        nearer = error < least
        best, least = np.where(nearer, np.uint8(i), best), np.where(nearer, error, least)
    return best


def greatest(x: Floats) -> Floats:
    """(n, k) -> (n, 1): the largest magnitude; NaNs never win."""
    most: Floats = np.where(np.isnan(x), np.float32(0), np.abs(x)).max(axis=1, keepdims=True)
    return most
