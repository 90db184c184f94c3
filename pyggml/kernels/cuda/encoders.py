"""Blocks of 32 values made by a warp, a value a lane: how rows become Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and IQ4_NL.

Owns the searches for scales as GPU code, to the bit as `convert` in `quants/` has them, for NaNs and infinities too.
Products are rounded by themselves (`mul_rn`), because there they are.
"""

from __future__ import annotations

from pyggml.kernels.cuda.blocks import SIMPLE

KINDS = {t: i for i, t in enumerate(SIMPLE)}
"""The numbers by which kernels know the types."""


def encoder():
    """-> f(at, x, kind): the block at `at` from the values x of a warp's lanes; all lanes take part."""
    import numpy as np

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.blocks import level

    look_up = level()
    highest = float(np.finfo(np.float32).max)

    @d.inline
    def lane():
        return d.thread() & 31

    @d.inline
    def first(hit):
        """The first lane where `hit` is 1; 32 = none."""
        n = d.i32(lane()) if hit == 1 else d.i32(32)
        n = min(n, d.shuffle_xor_i32(n, 16))
        n = min(n, d.shuffle_xor_i32(n, 8))
        n = min(n, d.shuffle_xor_i32(n, 4))
        n = min(n, d.shuffle_xor_i32(n, 2))
        return min(n, d.shuffle_xor_i32(n, 1))

    @d.inline
    def extreme(x):
        """The first value of largest magnitude, and that magnitude; NaNs never win (rounding.py: largest_signed)."""
        size = abs(x) if x == x else d.f32(0)
        most = d.warp_max(size)
        found = d.shuffle_f32(x, first(1 if size == most else 0) & 31)
        return found if most > d.f32(0) else d.f32(0), most

    @d.inline
    def low_byte(x):
        """C's (uint8_t) of a float, as x86 has it."""
        fits = x >= d.f32(-2147483648.0) and x < d.f32(2147483648.0)
        return (d.truncate_i32(x) if fits else d.i32(0)) & 255

    @d.inline
    def reciprocal(x):
        return d.f32(1) / x if x != d.f32(0) else d.f32(0)

    @d.inline
    def at_most(limit, q):
        signed = q - 256 if q > 127 else q
        return min(limit, signed) & 255

    @d.inline
    def larger(a, b):
        return a if a > b else b

    @d.inline
    def vector_maximum(x):
        """In the order of x86's vectors, where the second of two operands stays if one is a NaN (steps.py)."""
        me = lane()
        y = x
        y = larger(y, d.shuffle_f32(x, (me & 7) + 8))
        y = larger(y, d.shuffle_f32(x, (me & 7) + 16))
        y = larger(y, d.shuffle_f32(x, (me & 7) + 24))
        y = larger(d.shuffle_f32(y, (me & 3) + 4), d.shuffle_f32(y, me & 3))
        y = larger(d.shuffle_f32(y, me & 1), d.shuffle_f32(y, (me & 1) + 2))
        return larger(d.shuffle_f32(y, 0), d.shuffle_f32(y, 1))

    @d.inline
    def nearest_level(x):
        """The number of the level of IQ4_NL nearest to x, the upper one of two; a NaN takes the highest."""
        twice = d.round_down(x + x)
        n = 0
        for bit in range(4):
            higher = n + (8 >> bit)
            if not twice < d.f32(look_up(higher - 1) + look_up(higher)):
                n = higher
        return n

    @d.inline
    def total(x):
        """Over the lanes, from the first to the last."""
        s = d.f32(0)
        for i in range(32):
            s = s + d.shuffle_f32(x, i)
        return s

    @d.inline
    def put_halves(at, q):
        """Value j in the low half of byte j, value j + 16 in the high half."""
        me = lane()
        other = d.shuffle_i32(q, (me & 15) + 16)
        if me < 16:
            d.st_u8(at + me, q | (other << 4))

    @d.inline
    def put_fifths(at, q):
        """Bit j of a little word is bit 4 of value j: its byte by each eighth lane."""
        me = lane()
        bits = ((q >> 4) & 1) << (me & 7)
        bits = bits | d.shuffle_xor_i32(bits, 1)
        bits = bits | d.shuffle_xor_i32(bits, 2)
        bits = bits | d.shuffle_xor_i32(bits, 4)
        if me & 7 == 0:
            d.st_u8(at + (me >> 3), bits)

    @d.inline
    def encode(at, x, kind):
        me = lane()
        if kind == 4:  # Q8_0
            most = vector_maximum(abs(x))
            by = d.f32(127) / most if most != d.f32(0) else d.f32(0)
            y = d.mul_rn(x, by)
            q = d.round_i32(y) if abs(y) < d.f32(2147483648.0) else d.i32(-2147483648)
            d.st_u8(at + 2 + me, min(127, max(-128, q)))
            if me == 0:
                d.st_u16(at, d.f2h(most / d.f32(127)))
        elif kind == 5:  # IQ4_NL
            found, most = extreme(x)
            by = d.f32(0)
            if not most < d.f32(1e-15):
                by = d.f32(1) / (found / d.f32(-127))
            n = nearest_level(d.mul_rn(by, x))
            q = d.f32(look_up(n))
            weighted = d.mul_rn(d.mul_rn(x, x), q)
            top, bottom = total(d.mul_rn(weighted, x)), total(d.mul_rn(weighted, q))
            scale = d.f32(0)
            if bottom > d.f32(0) and not most < d.f32(1e-15):
                scale = top / bottom
            put_halves(at + 2, n)
            if me == 0:
                d.st_u16(at, d.f2h(scale))
        elif kind == 0 or kind == 2:  # Q4_0, Q5_0
            found, _ = extreme(x)
            half = 8 if kind == 0 else 16
            scale = found / d.f32(-half)
            q = at_most(2 * half - 1, low_byte(d.mul_rn(x, reciprocal(scale)) + (d.f32(half) + d.f32(0.5))))
            if kind == 0:
                put_halves(at + 2, q)
            else:
                put_fifths(at + 2, q)
                put_halves(at + 6, q & 15)
            if me == 0:
                d.st_u16(at, d.f2h(scale))
        else:  # Q4_1, Q5_1
            low, high = x if x == x else d.f32(highest), x if x == x else d.f32(-highest)
            least = -d.warp_max(-low)
            least = min(d.shuffle_f32(low, first(1 if low == least else 0) & 31), d.f32(highest))
            most = d.warp_max(high)
            most = max(d.shuffle_f32(high, first(1 if high == most else 0) & 31), d.f32(-highest))
            scale = (most - least) / d.f32(15 if kind == 1 else 31)
            q = low_byte(d.mul_rn(x - least, reciprocal(scale)) + d.f32(0.5))
            if kind == 1:
                put_halves(at + 4, at_most(15, q))
            else:
                put_fifths(at + 4, q)
                put_halves(at + 8, q & 15)
            if me == 0:
                d.st_u16(at, d.f2h(scale))
                d.st_u16(at + 2, d.f2h(least))

    return encode
