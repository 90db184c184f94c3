"""Elements of the types that few files have: one or two bits, trits, floats of four bits.

Their bytes are read one by one, so that their rows may begin anywhere.
"""


def elements():
    """-> six functions f(row, i) in the order of blocks.SMALL."""
    from pyggml.kernels.cuda import device as d

    return [d.inline(make(d)) for make in (_q1_0, _q2_0, _tq1_0, _tq2_0, _mxfp4, _nvfp4)]


def _q1_0(d):
    def q1_0(row, i):
        b = row + (i >> 7) * 18
        bit = (d.ld_u8(b + 2 + ((i >> 3) & 15)) >> (i & 7)) & 1
        x = d.ld_f16(b)
        return x if bit == 1 else -x

    return q1_0


def _q2_0(d):
    def q2_0(row, i):
        b = row + (i >> 6) * 18
        q = (d.ld_u8(b + 2 + ((i >> 2) & 15)) >> ((i & 3) * 2)) & 3
        return d.f32(q - 1) * d.ld_f16(b)

    return q2_0


def _tq1_0(d):
    def tq1_0(row, i):
        """Which byte, and which of its digits: 32 bytes of five values, 16 of five, 4 of four."""
        b = row + (i >> 8) * 54
        j = i & 255
        at, digit = j & 31, j >> 5
        if j >= 240:
            at, digit = 48 + (j & 3), (j - 240) >> 2
        elif j >= 160:
            at, digit = 32 + (j & 15), (j - 160) >> 4
        power = 1
        if digit == 1:
            power = 3
        elif digit == 2:
            power = 9
        elif digit == 3:
            power = 27
        elif digit == 4:
            power = 81
        q = (((d.ld_u8(b + at) * power) & 255) * 3) >> 8
        return d.f32(q - 1) * d.ld_f16(b + 52)

    return tq1_0


def _tq2_0(d):
    def tq2_0(row, i):
        b = row + (i >> 8) * 66
        q = (d.ld_u8(b + ((i >> 7) & 1) * 32 + (i & 31)) >> (((i >> 5) & 3) * 2)) & 3
        return d.f32(q - 1) * d.ld_f16(b + 64)

    return tq2_0


def _four_bits(d):
    """-> f(q): twice the value of an E2M1 number: 0 1 2 3 4 6 8 12, and the same below zero."""
    import numpy as np

    from pyggml.quants.fp4 import LEVELS

    table = int(np.ascontiguousarray(LEVELS[:8]).view(np.int64)[0])

    @d.inline
    def level(q):
        x = d.f32((d.i64(table) >> ((q & 7) * 8)) & 255)
        return -x if q > 8 else x

    return level


def _mxfp4(d):
    level = _four_bits(d)

    def mxfp4(row, i):
        b = row + (i >> 5) * 17
        e = d.ld_u8(b)
        half = d.bits_float((e - 1) << 23) if e > 1 else d.bits_float(0x00200000 << e)
        q = (d.ld_u8(b + 1 + (i & 15)) >> (((i >> 4) & 1) * 4)) & 15
        return level(q) * half

    return mxfp4


def _nvfp4(d):
    level = _four_bits(d)

    def nvfp4(row, i):
        b = row + (i >> 6) * 36
        part = (i >> 4) & 3
        x = d.ld_u8(b + part)
        exponent, mantissa = (x >> 3) & 15, x & 7
        half = d.bits_float(((exponent + 119) << 23) | (mantissa << 20))
        if exponent == 0:
            half = d.f32(mantissa) * d.f32(0.0009765625)
        if x == 127:
            half = d.f32(0)
        q = (d.ld_u8(b + 4 + part * 8 + (i & 7)) >> (((i >> 3) & 1) * 4)) & 15
        return level(q) * half

    return nvfp4
