"""32 values at once, as in unpack.py, of the IQ1, IQ2 and IQ3 types: words out of a table, with signs.

Owns the tables for that: those of quants/codebook.py as they are, but for IQ1_S and IQ1_M, whose values are shifted by an
eighth: eight times the values plus 1, then eight times the values minus 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.blocks import CODEBOOK, table_of
from pyggml.kernels.cuda.unpack_words import ONE_BIT

if TYPE_CHECKING:
    from pyggml.kernels.cuda.spec import DeviceAddress
    from pyggml.lowering.cuda import Builder

ENTRIES = 2048
"""Of the table of IQ1_S."""


def codebook_of(builder: Builder, dtype: GGMLType) -> int | DeviceAddress:
    """Where the table is; 0 for types that have none."""
    if dtype not in (GGMLType.IQ1_S, GGMLType.IQ1_M):
        return table_of(builder, dtype) if dtype in CODEBOOK else 0
    found = builder.remembered_constant("shifted")
    if found is None:
        from pyggml.quants.codebook import grid

        values = 8 * grid("IQ1_S")
        assert values.shape == (ENTRIES, 8)
        found = builder.constant(np.concatenate([values + 1, values - 1]).astype(np.int8), "shifted")
    return found


def _helpers(d):
    """-> run(table, number): eight values as two words; four(table, number): four as one; minus(word, signs, shift): negated
    where bits of four signs are set (no value is 0); parity(signs): seven signs with the eighth; word(at). Tables lie in global
    memory, wherever rows do."""
    from pyggml.kernels.cuda import device

    @d.inline
    def run(table, number):
        return device.ld_i32x2(table + number * 8)

    @d.inline
    def four(table, number):
        return device.ld_i32(table + number * 4)

    @d.inline
    def minus(word, signs, shift):
        ones = (((signs >> shift) & 15) * 0x00204081) & ONE_BIT
        return d.i32((word ^ (ones * 255)) + ones)

    @d.inline
    def parity(signs):
        p = signs ^ (signs >> 4)
        p = p ^ (p >> 2)
        return signs | (((p ^ (p >> 1)) & 1) << 7)

    @d.inline
    def word(at):
        return d.ld_u16(at) | (d.ld_u16(at + 2) << 16)

    return run, four, minus, parity, word


def _iq1_s(d):
    run, _, _, _, _ = _helpers(d)

    def unpack_iq1_s(row, j, table):
        sub = j & 7
        b = row + (j >> 3) * 50
        at = b + 2 + sub * 4
        high = d.ld_u16(b + 34 + sub * 2)
        shifted = (high >> 15) << 11
        q0, q1 = run(table, d.ld_u8(at) | ((high & 7) << 8) | shifted)
        q2, q3 = run(table, d.ld_u8(at + 1) | (((high >> 3) & 7) << 8) | shifted)
        q4, q5 = run(table, d.ld_u8(at + 2) | (((high >> 6) & 7) << 8) | shifted)
        q6, q7 = run(table, d.ld_u8(at + 3) | (((high >> 9) & 7) << 8) | shifted)
        by = d.ld_f16(b) * d.f32(((high >> 12) & 7) * 2 + 1) * d.f32(0.125)
        return q0, q1, q2, q3, q4, q5, q6, q7, by, d.f32(0)

    return unpack_iq1_s


def _iq1_m(d):
    run, _, _, _, _ = _helpers(d)

    def unpack_iq1_m(row, j, table):
        sub = j & 7
        b = row + (j >> 3) * 56
        at = b + sub * 4
        high = d.ld_u16(b + 32 + sub * 2)
        q0, q1 = run(table, d.ld_u8(at) | ((high & 15) << 8))
        q2, q3 = run(table, d.ld_u8(at + 1) | (((high >> 4) & 15) << 8))
        q4, q5 = run(table, d.ld_u8(at + 2) | (((high >> 8) & 15) << 8))
        q6, q7 = run(table, d.ld_u8(at + 3) | ((high >> 12) << 8))
        s0, s1, s2, s3 = d.ld_u16(b + 48), d.ld_u16(b + 50), d.ld_u16(b + 52), d.ld_u16(b + 54)
        by = d.h2f((s0 >> 12) | ((s1 >> 12) << 4) | ((s2 >> 12) << 8) | ((s3 >> 12) << 12)) * d.f32(0.125)
        packed = d.ld_u16(b + 48 + (sub >> 1) * 2) >> ((sub & 1) * 6)
        return (
            q0, q1, q2, q3, q4, q5, q6, q7, by * d.f32((packed & 7) * 2 + 1), d.f32(0),
            by * d.f32(((packed >> 3) & 7) * 2 + 1), d.f32(0),
        )  # fmt: skip

    return unpack_iq1_m


def _iq2_xxs(d):
    run, _, minus, parity, word = _helpers(d)

    def unpack_iq2_xxs(row, j, table):
        b = row + (j >> 3) * 66
        at = b + 2 + (j & 7) * 8
        numbers, packed = word(at), word(at + 4)
        s0, s1, s2, s3 = (
            parity(packed & 127),
            parity((packed >> 7) & 127),
            parity((packed >> 14) & 127),
            parity((packed >> 21) & 127),
        )
        q0, q1 = run(table, numbers & 255)
        q2, q3 = run(table, (numbers >> 8) & 255)
        q4, q5 = run(table, (numbers >> 16) & 255)
        q6, q7 = run(table, (numbers >> 24) & 255)
        by = d.ld_f16(b) * (d.f32(0.5) + d.f32((packed >> 28) & 15)) * d.f32(0.25)
        return (
            minus(q0, s0, 0), minus(q1, s0, 4), minus(q2, s1, 0), minus(q3, s1, 4), minus(q4, s2, 0), minus(q5, s2, 4),
            minus(q6, s3, 0), minus(q7, s3, 4), by, d.f32(0),
        )  # fmt: skip

    return unpack_iq2_xxs


def _iq2_xs(d):
    run, _, minus, parity, _ = _helpers(d)

    def unpack_iq2_xs(row, j, table):
        sub = j & 7
        b = row + (j >> 3) * 74
        at = b + 2 + sub * 8
        n0, n1, n2, n3 = d.ld_u16(at), d.ld_u16(at + 2), d.ld_u16(at + 4), d.ld_u16(at + 6)
        s0, s1, s2, s3 = parity(n0 >> 9), parity(n1 >> 9), parity(n2 >> 9), parity(n3 >> 9)
        q0, q1 = run(table, n0 & 511)
        q2, q3 = run(table, n1 & 511)
        q4, q5 = run(table, n2 & 511)
        q6, q7 = run(table, n3 & 511)
        by, scales = d.ld_f16(b) * d.f32(0.25), d.ld_u8(b + 66 + sub)
        return (
            minus(q0, s0, 0), minus(q1, s0, 4), minus(q2, s1, 0), minus(q3, s1, 4), minus(q4, s2, 0), minus(q5, s2, 4),
            minus(q6, s3, 0), minus(q7, s3, 4), by * (d.f32(0.5) + d.f32(scales & 15)), d.f32(0),
            by * (d.f32(0.5) + d.f32(scales >> 4)), d.f32(0),
        )  # fmt: skip

    return unpack_iq2_xs


def _iq2_s(d):
    run, _, minus, _, _ = _helpers(d)

    def unpack_iq2_s(row, j, table):
        sub = j & 7
        b = row + (j >> 3) * 82
        at, signs = b + 2 + sub * 4, b + 34 + sub * 4
        high = d.ld_u8(b + 66 + sub)
        s0, s1, s2, s3 = d.ld_u8(signs), d.ld_u8(signs + 1), d.ld_u8(signs + 2), d.ld_u8(signs + 3)
        q0, q1 = run(table, d.ld_u8(at) | ((high & 3) << 8))
        q2, q3 = run(table, d.ld_u8(at + 1) | (((high >> 2) & 3) << 8))
        q4, q5 = run(table, d.ld_u8(at + 2) | (((high >> 4) & 3) << 8))
        q6, q7 = run(table, d.ld_u8(at + 3) | ((high >> 6) << 8))
        by, scales = d.ld_f16(b) * d.f32(0.25), d.ld_u8(b + 74 + sub)
        return (
            minus(q0, s0, 0), minus(q1, s0, 4), minus(q2, s1, 0), minus(q3, s1, 4), minus(q4, s2, 0), minus(q5, s2, 4),
            minus(q6, s3, 0), minus(q7, s3, 4), by * (d.f32(0.5) + d.f32(scales & 15)), d.f32(0),
            by * (d.f32(0.5) + d.f32(scales >> 4)), d.f32(0),
        )  # fmt: skip

    return unpack_iq2_s


def _iq3_xxs(d):
    _, four, minus, parity, word = _helpers(d)

    def unpack_iq3_xxs(row, j, table):
        sub = j & 7
        b = row + (j >> 3) * 98
        at = b + 2 + sub * 8
        low, high, packed = word(at), word(at + 4), word(b + 66 + sub * 4)
        s0, s1, s2, s3 = (
            parity(packed & 127),
            parity((packed >> 7) & 127),
            parity((packed >> 14) & 127),
            parity((packed >> 21) & 127),
        )
        by = d.ld_f16(b) * (d.f32(0.5) + d.f32((packed >> 28) & 15)) * d.f32(0.5)
        return (
            minus(four(table, low & 255), s0, 0), minus(four(table, (low >> 8) & 255), s0, 4),
            minus(four(table, (low >> 16) & 255), s1, 0), minus(four(table, (low >> 24) & 255), s1, 4),
            minus(four(table, high & 255), s2, 0), minus(four(table, (high >> 8) & 255), s2, 4),
            minus(four(table, (high >> 16) & 255), s3, 0), minus(four(table, (high >> 24) & 255), s3, 4), by, d.f32(0),
        )  # fmt: skip

    return unpack_iq3_xxs


def _iq3_s(d):
    _, four, minus, _, word = _helpers(d)

    @d.inline
    def number(low, n, high, bit):
        return ((low >> (8 * n)) & 255) | (((high >> bit) & 1) << 8)

    def unpack_iq3_s(row, j, table):
        sub = j & 7
        b = row + (j >> 3) * 110
        at = b + 2 + sub * 8
        low, more, signs, high = word(at), word(at + 4), word(b + 74 + sub * 4), d.ld_u8(b + 66 + sub)
        scale = (d.ld_u8(b + 106 + (sub >> 1)) >> ((sub & 1) * 4)) & 15
        return (
            minus(four(table, number(low, 0, high, 0)), signs, 0), minus(four(table, number(low, 1, high, 1)), signs, 4),
            minus(four(table, number(low, 2, high, 2)), signs, 8), minus(four(table, number(low, 3, high, 3)), signs, 12),
            minus(four(table, number(more, 0, high, 4)), signs, 16), minus(four(table, number(more, 1, high, 5)), signs, 20),
            minus(four(table, number(more, 2, high, 6)), signs, 24), minus(four(table, number(more, 3, high, 7)), signs, 28),
            d.ld_f16(b) * d.f32(scale * 2 + 1), d.f32(0),
        )  # fmt: skip

    return unpack_iq3_s


MAKERS = {
    "IQ1_S": _iq1_s, "IQ1_M": _iq1_m, "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
}  # fmt: skip
