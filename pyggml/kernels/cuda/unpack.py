"""32 values of a row of blocks at once, as eight words of four signed bytes, for integer dot products.

Owns how a type's bits become bytes. value = d x q + m, with one d and m for the first 16 values and one for the others,
which are the same in types whose blocks (or sub-blocks) have 32 values.

Rows of types that ALIGNMENT does not name begin at any even address: aligned words are loaded and shifted together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.blocks import BLOCKS, CODEBOOK, SMALL
from pyggml.kernels.cuda.unpack_words import LOW, ONE_BIT, TWO_BITS, eight_words, fifths, less, level_pairs
from pyggml.quants.iq4_nl import LEVELS

T = GGMLType
ALIGNMENT = {T.Q4_1: 4, T.Q5_1: 4, T.Q2_K: 4, T.IQ4_XS: 4, T.Q4_K: 16, T.Q5_K: 16, T.NVFP4: 4, T.MXFP4: 1}
"""What rows must be aligned to; 2 where nothing is said."""
HALVES = frozenset({T.Q2_K, T.Q3_K, T.Q6_K, T.NVFP4, T.IQ1_M, T.IQ2_XS, T.IQ2_S})
"""Types with a scale for each 16 values."""
NO_MINIMUM = frozenset({T.Q8_0, T.IQ4_NL, T.IQ4_XS, T.Q3_K, T.Q6_K, T.MXFP4, T.NVFP4, T.Q1_0, *CODEBOOK})
"""Types whose m is always 0."""
UNPACKED = (*BLOCKS, *(t for t in SMALL if t != T.TQ1_0), *CODEBOOK)
"""Of the block types with values of their own only TQ1_0 is left out, whose digits are of base 3."""


class Part(NamedTuple):
    """Bytes of a block of 256 values that four of its groups need: `size` of them, from `at` on, and `step` further for the last four."""

    at: int
    step: int
    size: int


PARTS = {
    # scales and fifth bits; low bits
    T.Q5_K: (Part(0, 0, 48), Part(48, 64, 64)),
    # low bits; high bits; scales; the block's scale
    T.Q6_K: (Part(0, 64, 64), Part(128, 32, 32), Part(192, 8, 8), Part(208, 0, 2)),
}
"""Of types that may be read when only half of each block is at hand (block_q5_K and block_q6_K in ggml-common.h)."""


class Held(NamedTuple):
    """Where what there is of a block lies: of how many groups, and where each of PARTS begins behind the address of the block; the bits of that
    address that do not count for parts of less than 16 bytes, which were moved to a multiple of 16."""

    groups: int
    starts: tuple[int, ...]
    ignored: int = 0


TWO_WAYS = frozenset({T.Q4_0, T.Q5_0, T.Q3_K, T.Q6_K})
"""Types without a minimum of their own, whose values are numbers from 0 on less half their range: they are unpacked as signed
bytes, or as they are with a minimum, which takes fewer instructions there and more in the product."""


def has_minimum(dtype: GGMLType, signed: bool) -> bool:
    """Whether m is ever other than 0."""
    return not signed if dtype in TWO_WAYS else dtype not in NO_MINIMUM


def unpack(name: str, signed: bool = False, memory: Any = None, held: Held | None = None):
    """-> f(row, j, codebook): group j of 32 values: q0 ... q7, d, m, and for HALVES d and m of the second half. `signed`:
    types of TWO_WAYS have no minimum. `memory`: the vocabulary whose loads read the row; global memory's where nothing is said.
    `held`: blocks of a type of PARTS of which not all is there.

    codebook: address of the runs of values that blocks of a CODEBOOK type number (unpack_codebook.py)."""
    from pyggml.kernels.cuda import device

    d = memory or device
    if GGMLType[name] in CODEBOOK:
        from pyggml.kernels.cuda.unpack_codebook import MAKERS

        return d.inline(MAKERS[name](d))
    from pyggml.kernels.cuda import unpack_small

    makers: dict[str, Any] = {
        "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "Q2_K": _q2_k,
        "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs, **unpack_small.MAKERS,
    }  # fmt: skip
    options: dict[str, Any] = {"signed": signed} if GGMLType[name] in TWO_WAYS else {}
    if GGMLType[name] in PARTS:
        options["held"] = held or Held(8, tuple(part.at for part in PARTS[GGMLType[name]]))
    one = d.inline(makers[name](d, **options))

    @d.inline
    def group(row, j, codebook):
        return one(row, j)

    return group


def _q4_0(d, signed):
    difference = less()

    @d.inline
    def four(x):
        """Minus 8 if `signed`."""
        return difference(x, 0x08080808) if signed else d.i32(x)

    def unpack_q4_0(row, j):
        b = row + j * 18
        odd = b & 2
        at = b - odd
        select = 0x5432 + odd * 0x1111
        w0, w1, w2, w3, w4 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12), d.ld_i32(at + 16)
        a0, a1, a2, a3 = (
            d.permute(w0, w1, select), d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select),
        )  # fmt: skip
        by = d.h2f(d.shr(w0, odd * 8))
        return (
            four(a0 & LOW), four(a1 & LOW), four(a2 & LOW), four(a3 & LOW), four(d.shr(a0, 4) & LOW),
            four(d.shr(a1, 4) & LOW), four(d.shr(a2, 4) & LOW), four(d.shr(a3, 4) & LOW), by,
            d.f32(0) if signed else by * d.f32(-8),
        )  # fmt: skip

    return unpack_q4_0


def _q4_1(d):
    def unpack_q4_1(row, j):
        b = row + j * 20
        h, a0, a1, a2, a3 = d.ld_i32(b), d.ld_i32(b + 4), d.ld_i32(b + 8), d.ld_i32(b + 12), d.ld_i32(b + 16)
        return (
            d.i32(a0 & LOW), d.i32(a1 & LOW), d.i32(a2 & LOW), d.i32(a3 & LOW), d.i32(d.shr(a0, 4) & LOW),
            d.i32(d.shr(a1, 4) & LOW), d.i32(d.shr(a2, 4) & LOW), d.i32(d.shr(a3, 4) & LOW), d.h2f(h), d.h2f(h >> 16),
        )  # fmt: skip

    return unpack_q4_1


def _q5_0(d, signed):
    fifth, difference = fifths(), less()

    @d.inline
    def five(x, bits, shift):
        """Four bits and a fifth, minus 16 if `signed`."""
        y = (x & LOW) | fifth(bits, shift)
        return difference(y, 0x10101010) if signed else d.i32(y)

    def unpack_q5_0(row, j):
        b = row + j * 22
        odd = b & 2
        at = b - odd
        select = 0x5432 + odd * 0x1111
        w0, w1, w2 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8)
        w3, w4, w5 = d.ld_i32(at + 12), d.ld_i32(at + 16), d.ld_i32(at + 20)
        h = d.permute(w0, w1, select)
        a0, a1, a2, a3 = (
            d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select), d.permute(w4, w5, select),
        )  # fmt: skip
        by = d.h2f(d.shr(w0, odd * 8))
        return (
            five(a0, h, 0), five(a1, h, 4), five(a2, h, 8), five(a3, h, 12), five(d.shr(a0, 4), h, 16),
            five(d.shr(a1, 4), h, 20), five(d.shr(a2, 4), h, 24), five(d.shr(a3, 4), h, 28), by,
            d.f32(0) if signed else by * d.f32(-16),
        )  # fmt: skip

    return unpack_q5_0


def _q5_1(d):
    fifth = fifths()

    def unpack_q5_1(row, j):
        b = row + j * 24
        s, h = d.ld_i32(b), d.ld_i32(b + 4)
        a0, a1, a2, a3 = d.ld_i32(b + 8), d.ld_i32(b + 12), d.ld_i32(b + 16), d.ld_i32(b + 20)
        return (
            d.i32((a0 & LOW) | fifth(h, 0)), d.i32((a1 & LOW) | fifth(h, 4)), d.i32((a2 & LOW) | fifth(h, 8)),
            d.i32((a3 & LOW) | fifth(h, 12)), d.i32((d.shr(a0, 4) & LOW) | fifth(h, 16)),
            d.i32((d.shr(a1, 4) & LOW) | fifth(h, 20)), d.i32((d.shr(a2, 4) & LOW) | fifth(h, 24)),
            d.i32((d.shr(a3, 4) & LOW) | fifth(h, 28)), d.h2f(s), d.h2f(s >> 16),
        )  # fmt: skip

    return unpack_q5_1


def _q8_0(d):
    def unpack_q8_0(row, j):
        b = row + j * 34
        odd = b & 2
        at = b - odd
        select = 0x5432 + odd * 0x1111
        w0, w1, w2, w3, w4 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12), d.ld_i32(at + 16)
        w5, w6, w7, w8 = d.ld_i32(at + 20), d.ld_i32(at + 24), d.ld_i32(at + 28), d.ld_i32(at + 32)
        return (
            d.permute(w0, w1, select), d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select),
            d.permute(w4, w5, select), d.permute(w5, w6, select), d.permute(w6, w7, select), d.permute(w7, w8, select),
            d.h2f(d.shr(w0, odd * 8)), d.f32(0),
        )  # fmt: skip

    return unpack_q8_0


def _iq4_nl(d):
    pair = level_pairs(LEVELS)

    def unpack_iq4_nl(row, j):
        b = row + j * 18
        odd = b & 2
        at = b - odd
        select = 0x5432 + odd * 0x1111
        w0, w1, w2, w3, w4 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12), d.ld_i32(at + 16)
        a0, a1, a2, a3 = (
            d.permute(w0, w1, select), d.permute(w1, w2, select), d.permute(w2, w3, select), d.permute(w3, w4, select),
        )  # fmt: skip
        (q0, q4), (q1, q5), (q2, q6), (q3, q7) = pair(a0), pair(a1), pair(a2), pair(a3)
        return q0, q1, q2, q3, q4, q5, q6, q7, d.h2f(d.shr(w0, odd * 8)), d.f32(0)

    return unpack_iq4_nl


# ---- blocks of 256: group j is sub-block j % 8


def _q2_k(d):
    def unpack_q2_k(row, j):
        sub = j & 7
        b = row + (j >> 3) * 84
        at = b + 16 + (sub >> 2) * 32
        shift = (sub & 3) * 2
        both = d.ld_i32(b + 80)
        s0, s1 = d.ld_u8(b + 2 * sub), d.ld_u8(b + 2 * sub + 1)
        scale, low = d.h2f(both), -d.h2f(both >> 16)
        return (
            d.i32(d.shr(d.ld_i32(at), shift) & TWO_BITS), d.i32(d.shr(d.ld_i32(at + 4), shift) & TWO_BITS),
            d.i32(d.shr(d.ld_i32(at + 8), shift) & TWO_BITS), d.i32(d.shr(d.ld_i32(at + 12), shift) & TWO_BITS),
            d.i32(d.shr(d.ld_i32(at + 16), shift) & TWO_BITS), d.i32(d.shr(d.ld_i32(at + 20), shift) & TWO_BITS),
            d.i32(d.shr(d.ld_i32(at + 24), shift) & TWO_BITS), d.i32(d.shr(d.ld_i32(at + 28), shift) & TWO_BITS),
            scale * d.f32(d.i32(s0 & 15)), low * d.f32(d.shr(s0, 4)), scale * d.f32(d.i32(s1 & 15)), low * d.f32(d.shr(s1, 4)),
        )  # fmt: skip

    return unpack_q2_k


def _q3_k(d, signed):
    eight, difference = eight_words(d), less()

    @d.inline
    def scale_of(b, s):
        low = d.shr(d.ld_u8(b + 96 + (s & 7)), (s >> 3) * 4) & 15
        return d.f32(d.i32((low | ((d.shr(d.ld_u8(b + 104 + (s & 3)), (s >> 2) * 2) & 3) << 4)) - 32))

    @d.inline
    def three(low, high, shift, sub):
        """Two bits and a third, minus 4 if `signed`."""
        y = (d.shr(low, shift) & TWO_BITS) | ((d.shr(high, sub) & ONE_BIT) << 2)
        return difference(y, 0x04040404) if signed else d.i32(y)

    def unpack_q3_k(row, j):
        sub = j & 7
        b = row + (j >> 3) * 110
        shift = (sub & 3) * 2
        h0, h1, h2, h3, h4, h5, h6, h7 = eight(b)
        w0, w1, w2, w3, w4, w5, w6, w7 = eight(b + 32 + (sub >> 2) * 32)
        by, low = d.ld_f16(b + 108), d.f32(0 if signed else -4)
        s0, s1 = by * scale_of(b, 2 * sub), by * scale_of(b, 2 * sub + 1)
        return (
            three(w0, h0, shift, sub), three(w1, h1, shift, sub), three(w2, h2, shift, sub), three(w3, h3, shift, sub),
            three(w4, h4, shift, sub), three(w5, h5, shift, sub), three(w6, h6, shift, sub), three(w7, h7, shift, sub),
            s0, s0 * low, s1, s1 * low,
        )  # fmt: skip

    return unpack_q3_k


def _k4_header(d):
    """-> f(b, sub): scale and minimum of a sub-block of Q4_K or Q5_K (ggml-quants.c: get_scale_min_k4)."""

    @d.inline
    def header(b, sub):
        both, s0, s1, s2 = d.ld_i32x4(b)
        k = (sub & 3) * 8
        scale, low = d.shr(s0, k) & 63, d.shr(s1, k) & 63
        if sub >= 4:
            scale = (d.shr(s2, k) & 15) | ((d.shr(s0, k + 6) & 3) << 4)
            low = (d.shr(s2, k + 4) & 15) | ((d.shr(s1, k + 6) & 3) << 4)
        return d.h2f(both) * d.f32(d.i32(scale)), -d.h2f(d.shr(both, 16)) * d.f32(d.i32(low))

    return header


def _q4_k(d):
    header = _k4_header(d)

    def unpack_q4_k(row, j):
        sub = j & 7
        b = row + (j >> 3) * 144
        scale, low = header(b, sub)
        shift = (sub & 1) * 4
        at = b + 16 + (sub >> 1) * 32
        w0, w1, w2, w3 = d.ld_i32x4(at)
        w4, w5, w6, w7 = d.ld_i32x4(at + 16)
        return (
            d.i32(d.shr(w0, shift) & LOW), d.i32(d.shr(w1, shift) & LOW), d.i32(d.shr(w2, shift) & LOW),
            d.i32(d.shr(w3, shift) & LOW), d.i32(d.shr(w4, shift) & LOW), d.i32(d.shr(w5, shift) & LOW),
            d.i32(d.shr(w6, shift) & LOW), d.i32(d.shr(w7, shift) & LOW), scale, low,
        )  # fmt: skip

    return unpack_q4_k


def _q5_k(d, held):
    header, (head, quants), last = _k4_header(d), held.starts, held.groups - 1

    @d.inline
    def five(low, high, shift, sub):
        return d.i32((d.shr(low, shift) & LOW) | ((d.shr(high, sub) & ONE_BIT) << 4))

    def unpack_q5_k(row, j):
        sub = j & 7
        b = row + (j >> 3) * 176
        scale, low = header(b + head, sub)
        shift = (sub & 1) * 4
        at = b + quants + ((j & last) >> 1) * 32
        h0, h1, h2, h3 = d.ld_i32x4(b + head + 16)
        h4, h5, h6, h7 = d.ld_i32x4(b + head + 32)
        w0, w1, w2, w3 = d.ld_i32x4(at)
        w4, w5, w6, w7 = d.ld_i32x4(at + 16)
        return (
            five(w0, h0, shift, sub), five(w1, h1, shift, sub), five(w2, h2, shift, sub), five(w3, h3, shift, sub),
            five(w4, h4, shift, sub), five(w5, h5, shift, sub), five(w6, h6, shift, sub), five(w7, h7, shift, sub),
            scale, low,
        )  # fmt: skip

    return unpack_q5_k


def _q6_k(d, signed, held):
    eight, difference, last, ignored = eight_words(d), less(), held.groups - 1, held.ignored
    lows, highs, scales, scale = held.starts

    @d.inline
    def six(low, high, shift, pair):
        """Four bits and two, minus 32 if `signed`."""
        y = (d.shr(low, shift) & LOW) | ((d.shr(high, pair) & TWO_BITS) << 4)
        return difference(y, 0x20202020) if signed else d.i32(y)

    def unpack_q6_k(row, j):
        sub = j & last
        b = row + (j >> 3) * 210
        shift, pair = ((sub >> 1) & 1) * 4, (sub & 3) * 2
        h0, h1, h2, h3, h4, h5, h6, h7 = eight(b + highs + (sub >> 2) * 32)
        w0, w1, w2, w3, w4, w5, w6, w7 = eight(b + lows + (sub >> 2) * 64 + (sub & 1) * 32)
        near = b - (b & ignored)
        by, least = d.ld_f16(near + scale), d.f32(0 if signed else -32)
        at = near + scales + 2 * sub
        s0, s1 = by * d.f32(d.ld_i8(at)), by * d.f32(d.ld_i8(at + 1))
        return (
            six(w0, h0, shift, pair), six(w1, h1, shift, pair), six(w2, h2, shift, pair), six(w3, h3, shift, pair),
            six(w4, h4, shift, pair), six(w5, h5, shift, pair), six(w6, h6, shift, pair), six(w7, h7, shift, pair),
            s0, s0 * least, s1, s1 * least,
        )  # fmt: skip

    return unpack_q6_k


def _iq4_xs(d):
    pair = level_pairs(LEVELS)

    def unpack_iq4_xs(row, j):
        sub = j & 7
        b = row + (j >> 3) * 136
        head, lows = d.ld_i32(b), d.ld_i32(b + 4)
        scale = (d.shr(lows, sub * 4) & 15) | ((d.shr(head, 16 + sub * 2) & 3) << 4)
        at = b + 8 + sub * 16
        a0, a1, a2, a3 = d.ld_i32(at), d.ld_i32(at + 4), d.ld_i32(at + 8), d.ld_i32(at + 12)
        (q0, q4), (q1, q5), (q2, q6), (q3, q7) = pair(a0), pair(a1), pair(a2), pair(a3)
        return q0, q1, q2, q3, q4, q5, q6, q7, d.h2f(head) * d.f32(d.i32(scale - 32)), d.f32(0)

    return unpack_iq4_xs
