"""32 values of a row of blocks at once, as eight words of four signed bytes, for integer dot products.

Owns how a type's bits become bytes; must not know what is multiplied. value = d x q + m, with one d and m for the first
16 values and one for the others, which are the same in types whose blocks (or sub-blocks) have 32 values.

Rows of SIMPLE types but Q4_1 and Q5_1 begin at any even address: aligned words are loaded and shifted together.
"""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.blocks import BLOCKS, SIMPLE, SUPER

T = GGMLType
ALIGNMENT = {T.Q4_1: 4, T.Q5_1: 4}
"""What rows must be aligned to; 2 where nothing is said."""
HALVES: frozenset[GGMLType] = frozenset()
"""Types with a scale for each 16 values."""
UNPACKED = SIMPLE
assert set(UNPACKED) <= set(BLOCKS) and SUPER


def unpack(name: str):
    """-> f(row, j): group j of 32 values: q0 ... q7, d, m, and for HALVES d and m of the second half."""
    from pyggml.kernels.cuda import device as d

    make = {
        "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl,
    }[name]  # fmt: skip
    return d.inline(make(d))


LOW = 0x0F0F0F0F


def _q4_0(d):
    def unpack_q4_0(row, j):
        b = row + j * 18
        odd = b & 2
        at = b - odd
        select = 0x7654 if odd else 0x5432
        w0, w1, w2, w3, w4 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12), d.ld_i32(at + 16)
        a0, a1, a2, a3 = (
            d.permute(w0, w1, select), d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select),
        )  # fmt: skip
        by = d.h2f(w0 >> (odd * 8))
        return (
            d.i32(a0 & LOW), d.i32(a1 & LOW), d.i32(a2 & LOW), d.i32(a3 & LOW), d.i32((a0 >> 4) & LOW),
            d.i32((a1 >> 4) & LOW), d.i32((a2 >> 4) & LOW), d.i32((a3 >> 4) & LOW), by, by * d.f32(-8),
        )  # fmt: skip

    return unpack_q4_0


def _q4_1(d):
    def unpack_q4_1(row, j):
        b = row + j * 20
        h, a0, a1, a2, a3 = d.ld_i32(b), d.ld_i32(b + 4), d.ld_i32(b + 8), d.ld_i32(b + 12), d.ld_i32(b + 16)
        return (
            d.i32(a0 & LOW), d.i32(a1 & LOW), d.i32(a2 & LOW), d.i32(a3 & LOW), d.i32((a0 >> 4) & LOW),
            d.i32((a1 >> 4) & LOW), d.i32((a2 >> 4) & LOW), d.i32((a3 >> 4) & LOW), d.h2f(h), d.h2f(h >> 16),
        )  # fmt: skip

    return unpack_q4_1


def _fifth(d):
    @d.inline
    def fifth(bits, shift):
        """Bits shift ... shift + 3 as bit 4 of each of four bytes."""
        return d.i32(((((bits >> shift) & 15) * 0x00204081) & 0x01010101) << 4)

    return fifth


def _q5_0(d):
    fifth = _fifth(d)

    def unpack_q5_0(row, j):
        b = row + j * 22
        odd = b & 2
        at = b - odd
        select = 0x7654 if odd else 0x5432
        w0, w1, w2 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8)
        w3, w4, w5 = d.ld_i32(at + 12), d.ld_i32(at + 16), d.ld_i32(at + 20)
        h = d.permute(w0, w1, select)
        a0, a1, a2, a3 = (
            d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select), d.permute(w4, w5, select),
        )  # fmt: skip
        by = d.h2f(w0 >> (odd * 8))
        return (
            d.i32((a0 & LOW) | fifth(h, 0)), d.i32((a1 & LOW) | fifth(h, 4)), d.i32((a2 & LOW) | fifth(h, 8)),
            d.i32((a3 & LOW) | fifth(h, 12)), d.i32(((a0 >> 4) & LOW) | fifth(h, 16)),
            d.i32(((a1 >> 4) & LOW) | fifth(h, 20)), d.i32(((a2 >> 4) & LOW) | fifth(h, 24)),
            d.i32(((a3 >> 4) & LOW) | fifth(h, 28)), by, by * d.f32(-16),
        )  # fmt: skip

    return unpack_q5_0


def _q5_1(d):
    fifth = _fifth(d)

    def unpack_q5_1(row, j):
        b = row + j * 24
        s, h = d.ld_i32(b), d.ld_i32(b + 4)
        a0, a1, a2, a3 = d.ld_i32(b + 8), d.ld_i32(b + 12), d.ld_i32(b + 16), d.ld_i32(b + 20)
        return (
            d.i32((a0 & LOW) | fifth(h, 0)), d.i32((a1 & LOW) | fifth(h, 4)), d.i32((a2 & LOW) | fifth(h, 8)),
            d.i32((a3 & LOW) | fifth(h, 12)), d.i32(((a0 >> 4) & LOW) | fifth(h, 16)),
            d.i32(((a1 >> 4) & LOW) | fifth(h, 20)), d.i32(((a2 >> 4) & LOW) | fifth(h, 24)),
            d.i32(((a3 >> 4) & LOW) | fifth(h, 28)), d.h2f(s), d.h2f(s >> 16),
        )  # fmt: skip

    return unpack_q5_1


def _q8_0(d):
    def unpack_q8_0(row, j):
        b = row + j * 34
        odd = b & 2
        at = b - odd
        select = 0x7654 if odd else 0x5432
        w0, w1, w2, w3, w4 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12), d.ld_i32(at + 16)
        w5, w6, w7, w8 = d.ld_i32(at + 20), d.ld_i32(at + 24), d.ld_i32(at + 28), d.ld_i32(at + 32)
        return (
            d.permute(w0, w1, select), d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select),
            d.permute(w4, w5, select), d.permute(w5, w6, select), d.permute(w6, w7, select), d.permute(w7, w8, select),
            d.h2f(w0 >> (odd * 8)), d.f32(0),
        )  # fmt: skip

    return unpack_q8_0


def levels(d):
    """-> f(v): four numbers of levels, one a byte -> the levels of IQ4_NL."""
    import numpy as np

    from pyggml.quants.iq4_nl import LEVELS

    t0, t1, t2, t3 = (int(x) for x in np.ascontiguousarray(LEVELS).view(np.int32))

    @d.inline
    def look_up(v):
        pairs = v | (v >> 4)
        select = ((pairs & 255) | ((pairs >> 8) & 0xFF00)) & 0x7777
        low, high = d.permute(t0, t1, select), d.permute(t2, t3, select)
        mask = ((v >> 3) & 0x01010101) * 255
        return d.i32(low ^ ((low ^ high) & mask))

    return look_up


def _iq4_nl(d):
    look_up = levels(d)

    def unpack_iq4_nl(row, j):
        b = row + j * 18
        odd = b & 2
        at = b - odd
        select = 0x7654 if odd else 0x5432
        w0, w1, w2, w3, w4 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12), d.ld_i32(at + 16)
        a0, a1, a2, a3 = (
            d.permute(w0, w1, select), d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select),
        )  # fmt: skip
        return (
            look_up(a0 & LOW), look_up(a1 & LOW), look_up(a2 & LOW), look_up(a3 & LOW), look_up((a0 >> 4) & LOW),
            look_up((a1 >> 4) & LOW), look_up((a2 >> 4) & LOW), look_up((a3 >> 4) & LOW), d.h2f(w0 >> (odd * 8)),
            d.f32(0),
        )  # fmt: skip

    return unpack_iq4_nl
