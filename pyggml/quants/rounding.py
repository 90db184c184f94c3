"""The steps that several block types share, in ggml's float32 order.

Each follows ggml-quants.c (`quantize_row_*_ref`) to the bit, for NaNs, infinities, denormals and signed zeros too.
"""

import numpy as np
from numpy.typing import NDArray

from pyggml.quants.base import Bytes, Floats

FLT_MAX = np.finfo(np.float32).max


def reciprocal(d: Floats) -> Floats:
    """1/d, and 0 where d is 0; infinite where d is too small for its reciprocal."""
    return np.where(d != 0, np.float32(1) / d, np.float32(0))


def largest_signed(x: Floats) -> Floats:
    """(n, k) -> (n, 1): in each block the first value of largest magnitude, with its sign. NaNs never win; +0 if all are 0."""
    magnitude = np.where(np.isnan(x), np.float32(0), np.abs(x))
    first = magnitude.argmax(axis=1, keepdims=True)
    found = np.take_along_axis(x, first, axis=1)
    return np.where(np.take_along_axis(magnitude, first, axis=1) > 0, found, np.float32(0))


def least_and_greatest(x: Floats) -> tuple[Floats, Floats]:
    """(n, k) -> two of (n, 1). NaNs never win, nor what lies beyond the finite; of -0 and +0 the first one does."""
    nan = np.isnan(x)
    low, high = np.where(nan, FLT_MAX, x), np.where(nan, -FLT_MAX, x)
    least = np.take_along_axis(low, low.argmin(axis=1, keepdims=True), axis=1)
    greatest = np.take_along_axis(high, high.argmax(axis=1, keepdims=True), axis=1)
    return np.minimum(least, FLT_MAX), np.maximum(greatest, -FLT_MAX)


def largest_magnitude(x: Floats) -> Floats:
    """(n, k) -> (n, 1). ggml's MAX takes its second operand when one is NaN: a NaN wipes out what came before it."""
    nan = np.isnan(x)
    wiped = np.logical_or.accumulate(nan[:, ::-1], axis=1)[:, ::-1]  # at or before the last NaN
    greatest = np.where(wiped, np.float32(0), np.abs(x)).max(axis=1, keepdims=True)
    return np.where(nan[:, -1:], np.float32(np.nan), greatest)


def vector_maximum(x: Floats) -> Floats:
    """(n, 32) -> (n,): the largest, in the order of x86's vectors: 8 lanes, then halves. Where one of two operands is a
    NaN the second one stays, as in maxps."""

    def larger(a: Floats, b: Floats) -> Floats:
        return np.where(a > b, a, b)

    y = x[:, :8]
    for i in range(8, 32, 8):
        y = larger(y, x[:, i : i + 8])
    y = larger(y[:, 4:], y[:, :4])
    y = larger(y[:, :2], y[:, 2:])
    return larger(y[:, 0], y[:, 1])


def in_steps_of_127(values: Floats) -> tuple[Floats, NDArray[np.int32]]:
    """(n, 32) -> d (n,), whole numbers (n, 32): the vectorised quantize_row_q8_0 and q8_1 of ggml-cpu/arch/x86/quants.c.

    Halves go to even; a NaN and what no i32 holds become -2^31.
    """
    most = vector_maximum(np.abs(values))
    by = np.where(most != 0, np.float32(127) / most, np.float32(0))
    x = values * by[:, None]
    q = np.rint(np.where(np.abs(x) < np.float32(2.0**31), x, np.float32(-(2.0**31)))).astype(np.int32)
    return most / np.float32(127), q


def saturated(q: NDArray[np.int32]) -> NDArray[np.int8]:
    """To the nearest number that a byte holds."""
    return np.clip(q, -128, 127).astype(np.int8)


def low_byte(x: Floats) -> Bytes:
    """C's (uint8_t) or (int8_t) of a float as x86 does it: truncated to int32, low byte; 0 when it is no int32."""
    fits = (x >= np.float32(-(2.0**31))) & (x < np.float32(2.0**31))
    return np.where(fits, x, np.float32(0)).astype(np.int32).astype(np.uint8)


def at_most(limit: int, q: Bytes) -> Bytes:
    """MIN(limit, (int8_t) q): negative values stay."""
    return np.minimum(q.view(np.int8), np.int8(limit)).view(np.uint8)


def round_half_away(x: Floats) -> Floats:
    """C's roundf: to the nearest integer, halves away from zero."""
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= np.float32(0.5), whole + np.copysign(np.float32(1), x), whole)


def join_halves(q: Bytes) -> Bytes:
    """(n, 32) -> (n, 16): value j in the low four bits of byte j, value j + 16 in the high ones."""
    half = q.shape[1] // 2
    return q[:, :half] | (q[:, half:] << np.uint8(4))


def split_halves(packed: Bytes) -> Bytes:
    """(n, 16) -> (n, 32): the inverse of `join_halves` for values below 16."""
    return np.concatenate([packed & np.uint8(0x0F), packed >> np.uint8(4)], axis=1)


def join_fifth_bits(q: Bytes) -> NDArray[np.uint32]:
    """(n, 32) -> (n,): bit j is bit 4 of value j."""
    bits = np.packbits((q >> np.uint8(4)) & np.uint8(1), axis=1, bitorder="little")
    return bits.view("<u4").reshape(-1)


def split_fifth_bits(bits: NDArray[np.uint32]) -> Bytes:
    """(n,) -> (n, 32): 16 where bit j is set, else 0."""
    rows = np.ascontiguousarray(bits, "<u4").view(np.uint8).reshape(-1, 4)
    return np.unpackbits(rows, axis=1, bitorder="little") << np.uint8(4)
