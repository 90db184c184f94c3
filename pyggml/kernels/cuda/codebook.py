"""Elements of the IQ1, IQ2 and IQ3 types: a number in a block says which run of a table they are in.

Rows begin at even addresses; a table has entries of eight (or four) bytes. As in quants/codebook.py.
"""


def elements():
    """-> f(row, i, step, kind, table): kind is the place in blocks.CODEBOOK."""
    from pyggml.kernels.cuda import device as d

    f0, f1, f2, f3, f4, f5, f6 = (
        d.inline(make(d)) for make in (_iq1_s, _iq1_m, _iq2_xxs, _iq2_xs, _iq2_s, _iq3_xxs, _iq3_s)
    )

    @d.inline
    def one(row, i, step, kind, table):
        if kind == 0:
            return f0(row, i, table)
        if kind == 1:
            return f1(row, i, table)
        if kind == 2:
            return f2(row, i, table)
        if kind == 3:
            return f3(row, i, table)
        if kind == 4:
            return f4(row, i, table)
        if kind == 5:
            return f5(row, i, table)
        return f6(row, i, table)

    return one


def _words(d):
    """-> f(at): 32 bits from an even address."""

    @d.inline
    def word(at):
        return d.ld_u16(at) | (d.ld_u16(at + 2) << 16)

    return word


def _signed(d):
    """-> f(x, signs, j): x, negated where bit j of the byte is set; of seven bits the eighth makes the number even."""

    @d.inline
    def plain(x, signs, j):
        return -x if (signs >> j) & 1 else x

    @d.inline
    def even(x, signs, j):
        p = signs ^ (signs >> 4)
        p = p ^ (p >> 2)
        p = (p ^ (p >> 1)) & 1
        return plain(x, signs | (p << 7), j)

    return plain, even


def _nibble_scale(d):
    """-> f(at, n): 0.5 + the n-th number of four bits."""

    @d.inline
    def scale(at, n):
        return d.f32(0.5) + d.f32((d.ld_u8(at + (n >> 1)) >> ((n & 1) * 4)) & 15)

    return scale


def _iq1_s(d):
    def iq1_s(row, i, table):
        b = row + (i >> 8) * 50
        run = (i >> 3) & 31
        high = d.ld_u16(b + 34 + (run >> 2) * 2)
        number = d.ld_u8(b + 2 + run) | (((high >> ((run & 3) * 3)) & 7) << 8)
        shift = d.f32(-0.125) if high & 0x8000 else d.f32(0.125)
        scale = d.f32(((high >> 12) & 7) * 2 + 1)
        return d.ld_f16(b) * scale * (d.f32(d.ld_i8(table + number * 8 + (i & 7))) + shift)

    return iq1_s


def _iq1_m(d):
    def iq1_m(row, i, table):
        b = row + (i >> 8) * 56
        run = (i >> 3) & 31
        high = (d.ld_u8(b + 32 + (run >> 1)) >> ((run & 1) * 4)) & 15
        number = d.ld_u8(b + run) | ((high & 7) << 8)
        shift = d.f32(-0.125) if high & 8 else d.f32(0.125)
        s0, s1, s2, s3 = d.ld_u16(b + 48), d.ld_u16(b + 50), d.ld_u16(b + 52), d.ld_u16(b + 54)
        by = d.h2f((s0 >> 12) | ((s1 >> 12) << 4) | ((s2 >> 12) << 8) | ((s3 >> 12) << 12))
        pair = run >> 1
        packed = d.ld_u16(b + 48 + (pair >> 2) * 2)
        scale = d.f32(((packed >> ((pair & 3) * 3)) & 7) * 2 + 1)
        return by * scale * (d.f32(d.ld_i8(table + number * 8 + (i & 7))) + shift)

    return iq1_m


def _iq2_xxs(d):
    word, (_, even) = _words(d), _signed(d)

    def iq2_xxs(row, i, table):
        b = row + (i >> 8) * 66
        at = b + 2 + ((i >> 5) & 7) * 8
        run = (i >> 3) & 3
        packed = word(at + 4)
        by = d.ld_f16(b) * (d.f32(0.5) + d.f32((packed >> 28) & 15)) * d.f32(0.25)
        x = by * d.f32(d.ld_i8(table + d.ld_u8(at + run) * 8 + (i & 7)))
        return even(x, (packed >> (run * 7)) & 127, i & 7)

    return iq2_xxs


def _iq2_xs(d):
    scale, (_, even) = _nibble_scale(d), _signed(d)

    def iq2_xs(row, i, table):
        b = row + (i >> 8) * 74
        run = (i >> 3) & 31
        q = d.ld_u16(b + 2 + run * 2)
        by = d.ld_f16(b) * scale(b + 66, run >> 1) * d.f32(0.25)
        return even(by * d.f32(d.ld_i8(table + (q & 511) * 8 + (i & 7))), q >> 9, i & 7)

    return iq2_xs


def _iq2_s(d):
    scale, (plain, _) = _nibble_scale(d), _signed(d)

    def iq2_s(row, i, table):
        b = row + (i >> 8) * 82
        run = (i >> 3) & 31
        number = d.ld_u8(b + 2 + run) | (((d.ld_u8(b + 66 + (run >> 2)) >> ((run & 3) * 2)) & 3) << 8)
        by = d.ld_f16(b) * scale(b + 74, run >> 1) * d.f32(0.25)
        return plain(by * d.f32(d.ld_i8(table + number * 8 + (i & 7))), d.ld_u8(b + 34 + run), i & 7)

    return iq2_s


def _iq3_xxs(d):
    word, (_, even) = _words(d), _signed(d)

    def iq3_xxs(row, i, table):
        b = row + (i >> 8) * 98
        packed = word(b + 66 + ((i >> 5) & 7) * 4)
        by = d.ld_f16(b) * (d.f32(0.5) + d.f32((packed >> 28) & 15)) * d.f32(0.5)
        x = by * d.f32(d.ld_i8(table + d.ld_u8(b + 2 + ((i >> 2) & 63)) * 4 + (i & 3)))
        return even(x, (packed >> (((i >> 3) & 3) * 7)) & 127, i & 7)

    return iq3_xxs


def _iq3_s(d):
    plain, _ = _signed(d)

    def iq3_s(row, i, table):
        b = row + (i >> 8) * 110
        run = (i >> 2) & 63
        number = d.ld_u8(b + 2 + run) | (((d.ld_u8(b + 66 + (run >> 3)) >> (run & 7)) & 1) << 8)
        sub = (i >> 5) & 7
        scale = d.f32(((d.ld_u8(b + 106 + (sub >> 1)) >> ((sub & 1) * 4)) & 15) * 2 + 1)
        x = d.ld_f16(b) * scale * d.f32(d.ld_i8(table + number * 4 + (i & 3)))
        return plain(x, d.ld_u8(b + 74 + ((i >> 3) & 31)), i & 7)

    return iq3_s
