"""How kernels read quantised blocks: single elements, and 32 values at once as bytes for integer dot products.

Owns the bits of each type as GPU code; their meaning is in `quants/`. Rows of blocks begin at any even address.
"""

from __future__ import annotations

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.iq4_nl import LEVELS

T = GGMLType
SIMPLE = (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.IQ4_NL)
SUPER = (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_XS)
BLOCKS = (*SIMPLE, *SUPER)


def _table64(values: np.ndarray) -> int:
    """Eight bytes as one i64."""
    return int(np.ascontiguousarray(values, np.int8).view(np.int64)[0])


def level():
    """-> f(q): the level of IQ4_NL and IQ4_XS with the number q, as an integer."""
    from pyggml.kernels.cuda import device as d

    low, high = _table64(LEVELS[:8]), _table64(LEVELS[8:])

    @d.inline
    def look_up(q):
        table = d.i64(high) if q > 7 else d.i64(low)
        byte = (table >> ((q & 7) * 8)) & 255
        return byte - 256 if byte > 127 else byte

    return look_up


def k4_scales():
    """-> scale(at, sub), minimum(at, sub): the 6-bit numbers of Q4_K and Q5_K (ggml-quants.c: get_scale_min_k4)."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def scale(at, sub):
        if sub < 4:
            return d.ld_u8(at + sub) & 63
        return (d.ld_u8(at + sub + 4) & 15) | ((d.ld_u8(at + sub - 4) >> 6) << 4)

    @d.inline
    def minimum(at, sub):
        if sub < 4:
            return d.ld_u8(at + sub + 4) & 63
        return (d.ld_u8(at + sub + 4) >> 4) | ((d.ld_u8(at + sub) >> 6) << 4)

    return scale, minimum


def element(name: str):
    """-> f(row, i): element i of a row of blocks as f32, rounded as the plain functions in `quants/` round it."""
    from pyggml.kernels.cuda import device as d

    make = {
        "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "Q2_K": _q2_k,
        "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs,
    }[name]  # fmt: skip
    return d.inline(make(d))


def _q4_0(d):
    def q4_0(row, i):
        b = row + (i >> 5) * 18
        j = i & 31
        q = (d.ld_u8(b + 2 + (j & 15)) >> ((j >> 4) * 4)) & 15
        return d.f32(q - 8) * d.ld_f16(b)

    return q4_0


def _q4_1(d):
    def q4_1(row, i):
        b = row + (i >> 5) * 20
        j = i & 31
        q = (d.ld_u8(b + 4 + (j & 15)) >> ((j >> 4) * 4)) & 15
        return d.mul_rn(d.f32(q), d.ld_f16(b)) + d.ld_f16(b + 2)

    return q4_1


def _q5_0(d):
    def q5_0(row, i):
        b = row + (i >> 5) * 22
        j = i & 31
        q = (d.ld_u8(b + 6 + (j & 15)) >> ((j >> 4) * 4)) & 15
        high = (d.ld_u8(b + 2 + (j >> 3)) >> (j & 7)) & 1
        return d.f32((q | (high << 4)) - 16) * d.ld_f16(b)

    return q5_0


def _q5_1(d):
    def q5_1(row, i):
        b = row + (i >> 5) * 24
        j = i & 31
        q = (d.ld_u8(b + 8 + (j & 15)) >> ((j >> 4) * 4)) & 15
        high = (d.ld_u8(b + 4 + (j >> 3)) >> (j & 7)) & 1
        return d.mul_rn(d.f32(q | (high << 4)), d.ld_f16(b)) + d.ld_f16(b + 2)

    return q5_1


def _q8_0(d):
    def q8_0(row, i):
        b = row + (i >> 5) * 34
        return d.f32(d.ld_i8(b + 2 + (i & 31))) * d.ld_f16(b)

    return q8_0


def _iq4_nl(d):
    look_up = level()

    def iq4_nl(row, i):
        b = row + (i >> 5) * 18
        j = i & 31
        q = (d.ld_u8(b + 2 + (j & 15)) >> ((j >> 4) * 4)) & 15
        return d.f32(look_up(q)) * d.ld_f16(b)

    return iq4_nl


def _q2_k(d):
    def q2_k(row, i):
        b = row + (i >> 8) * 84
        r = i & 127
        q = (d.ld_u8(b + 16 + ((i >> 7) & 1) * 32 + (r & 31)) >> ((r >> 5) * 2)) & 3
        s = d.ld_u8(b + ((i >> 4) & 15))
        scale = d.ld_f16(b + 80) * d.f32(s & 15)
        minimum = d.mul_rn(d.ld_f16(b + 82), d.f32(s >> 4))
        return d.mul_rn(scale, d.f32(q)) - minimum

    return q2_k


def _q3_k(d):
    def q3_k(row, i):
        b = row + (i >> 8) * 110
        r = i & 127
        low = (d.ld_u8(b + 32 + ((i >> 7) & 1) * 32 + (r & 31)) >> ((r >> 5) * 2)) & 3
        high = (d.ld_u8(b + (i & 31)) >> ((i >> 5) & 7)) & 1
        s = (i >> 4) & 15
        scale = (d.ld_u8(b + 96 + (s & 7)) >> ((s >> 3) * 4)) & 15
        scale = scale | (((d.ld_u8(b + 104 + (s & 3)) >> ((s >> 2) * 2)) & 3) << 4)
        return d.ld_f16(b + 108) * d.f32(scale - 32) * d.f32((low | (high << 2)) - 4)

    return q3_k


def _q4_k(d):
    scale, minimum = k4_scales()

    def q4_k(row, i):
        b = row + (i >> 8) * 144
        sub = (i >> 5) & 7
        q = (d.ld_u8(b + 16 + (sub >> 1) * 32 + (i & 31)) >> ((sub & 1) * 4)) & 15
        low = d.mul_rn(d.ld_f16(b + 2), d.f32(minimum(b + 4, sub)))
        return d.mul_rn(d.ld_f16(b) * d.f32(scale(b + 4, sub)), d.f32(q)) - low

    return q4_k


def _q5_k(d):
    scale, minimum = k4_scales()

    def q5_k(row, i):
        b = row + (i >> 8) * 176
        sub = (i >> 5) & 7
        q = (d.ld_u8(b + 48 + (sub >> 1) * 32 + (i & 31)) >> ((sub & 1) * 4)) & 15
        q = q | (((d.ld_u8(b + 16 + (i & 31)) >> sub) & 1) << 4)
        low = d.mul_rn(d.ld_f16(b + 2), d.f32(minimum(b + 4, sub)))
        return d.mul_rn(d.ld_f16(b) * d.f32(scale(b + 4, sub)), d.f32(q)) - low

    return q5_k


def _q6_k(d):
    def q6_k(row, i):
        b = row + (i >> 8) * 210
        n, r = (i >> 7) & 1, i & 127
        part, low = r >> 5, r & 31
        q = (d.ld_u8(b + n * 64 + (part & 1) * 32 + low) >> ((part >> 1) * 4)) & 15
        q = q | (((d.ld_u8(b + 128 + n * 32 + low) >> (part * 2)) & 3) << 4)
        return d.ld_f16(b + 208) * d.f32(d.ld_i8(b + 192 + ((i >> 4) & 15))) * d.f32(q - 32)

    return q6_k


def _iq4_xs(d):
    look_up = level()

    def iq4_xs(row, i):
        b = row + (i >> 8) * 136
        sub, j = (i >> 5) & 7, i & 31
        q = (d.ld_u8(b + 8 + sub * 16 + (j & 15)) >> ((j >> 4) * 4)) & 15
        scale = (d.ld_u8(b + 4 + (sub >> 1)) >> ((sub & 1) * 4)) & 15
        scale = scale | (((d.ld_u16(b + 2) >> (sub * 2)) & 3) << 4)
        return d.ld_f16(b) * d.f32(scale - 32) * d.f32(look_up(q))

    return iq4_xs
