"""32 values at once, as in unpack.py, of the types of one or two bits and of floats of four."""

from __future__ import annotations

from pyggml.kernels.cuda.unpack_words import ONE_BIT, TWO_BITS, eight_words, level_pairs
from pyggml.quants.fp4 import LEVELS


def _mxfp4(d):
    pair = level_pairs(LEVELS)

    def unpack_mxfp4(row, j):
        """Blocks of 17 bytes begin anywhere: five words are loaded, the last one only where bytes of it are asked for."""
        b = row + j * 17
        odd = (b + 1) & 3
        at = b + 1 - odd
        w0, w1, w2, w3 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12)
        w4 = d.ld_i32(at + (16 if odd != 0 else 12))
        shift = odd * 8
        a0, a1, a2, a3 = (
            d.funnel(w0, w1, shift),
            d.funnel(w1, w2, shift),
            d.funnel(w2, w3, shift),
            d.funnel(w3, w4, shift),
        )
        e = d.ld_u8(b)
        half = d.bits_float((e - 1) << 23) if e > 1 else d.bits_float(0x00200000 << e)
        (q0, q4), (q1, q5), (q2, q6), (q3, q7) = pair(a0), pair(a1), pair(a2), pair(a3)
        return q0, q1, q2, q3, q4, q5, q6, q7, half, d.f32(0)

    return unpack_mxfp4


def _nvfp4(d):
    pair = level_pairs(LEVELS)

    @d.inline
    def half_of(x):
        """Half of a number of four exponent and three mantissa bits."""
        exponent, mantissa = (x >> 3) & 15, x & 7
        half = d.bits_float(((exponent + 119) << 23) | (mantissa << 20))
        if exponent == 0:
            half = d.f32(mantissa) * d.f32(0.0009765625)
        return d.f32(0) if x == 127 else half

    def unpack_nvfp4(row, j):
        b = row + (j >> 1) * 36
        first = (j & 1) * 2
        at = b + 4 + first * 8
        w0, w1, w2, w3 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12)
        (q0, q2), (q1, q3), (q4, q6), (q5, q7) = pair(w0), pair(w1), pair(w2), pair(w3)
        half, half2 = half_of(d.ld_u8(b + first)), half_of(d.ld_u8(b + first + 1))
        return q0, q1, q2, q3, q4, q5, q6, q7, half, d.f32(0), half2, d.f32(0)

    return unpack_nvfp4


def _q1_0(d):
    @d.inline
    def signs(bits, shift):
        """1 where a bit is set, else -1."""
        clear = ((((~bits >> shift) & 15) * 0x00204081) & ONE_BIT) * 255
        return d.i32(clear | ONE_BIT)

    def unpack_q1_0(row, j):
        b = row + (j >> 2) * 18
        at = b + 2 + (j & 3) * 4
        w = d.ld_u16(at) | (d.ld_u16(at + 2) << 16)
        return (
            signs(w, 0), signs(w, 4), signs(w, 8), signs(w, 12), signs(w, 16), signs(w, 20), signs(w, 24),
            signs(w, 28), d.ld_f16(b), d.f32(0),
        )  # fmt: skip

    return unpack_q1_0


def _q2_0(d):
    @d.inline
    def spread(w, shift):
        """The four numbers of a byte, a byte each."""
        x = (w >> shift) & 255
        return d.i32((x | (x << 6) | (x << 12) | (x << 18)) & TWO_BITS)

    def unpack_q2_0(row, j):
        b = row + (j >> 1) * 18
        at = b + 2 + (j & 1) * 8
        w = d.ld_u16(at) | (d.ld_u16(at + 2) << 16)
        z = d.ld_u16(at + 4) | (d.ld_u16(at + 6) << 16)
        by = d.ld_f16(b)
        return (
            spread(w, 0), spread(w, 8), spread(w, 16), spread(w, 24), spread(z, 0), spread(z, 8), spread(z, 16),
            spread(z, 24), by, -by,
        )  # fmt: skip

    return unpack_q2_0


def _tq2_0(d):
    eight = eight_words(d)

    def unpack_tq2_0(row, j):
        sub = j & 7
        b = row + (j >> 3) * 66
        shift = (sub & 3) * 2
        w0, w1, w2, w3, w4, w5, w6, w7 = eight(b + (sub >> 2) * 32)
        by = d.ld_f16(b + 64)
        return (
            d.i32((w0 >> shift) & TWO_BITS), d.i32((w1 >> shift) & TWO_BITS), d.i32((w2 >> shift) & TWO_BITS),
            d.i32((w3 >> shift) & TWO_BITS), d.i32((w4 >> shift) & TWO_BITS), d.i32((w5 >> shift) & TWO_BITS),
            d.i32((w6 >> shift) & TWO_BITS), d.i32((w7 >> shift) & TWO_BITS), by, -by,
        )  # fmt: skip

    return unpack_tq2_0


MAKERS = {"MXFP4": _mxfp4, "NVFP4": _nvfp4, "Q1_0": _q1_0, "Q2_0": _q2_0, "TQ2_0": _tq2_0}
