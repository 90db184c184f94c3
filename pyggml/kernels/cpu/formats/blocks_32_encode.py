"""Blocks of 32 values made of two vectors of f32 lanes, to the bit as in quants/: () -> f(block, x, y).

Owns how vector code writes these layouts; the steps are those of quants/rounding.py. Imported by factories only (Numba).
"""

import itertools

import numpy as np

from pyggml import simd as v
from pyggml.jit import inline
from pyggml.quants import fp4, iq4_nl, mxfp4, q4_0, q4_1, q5_0, q5_1, q8_0, q8_1
from pyggml.simd.constants import memory

U = v.U


def _splat(value, elem="i32"):
    return v.constant(elem, [value] * 16)


def _offset(layout, field):
    return U(layout.fields[field][1])


_zero, _half_f32 = v.zero_f32, _splat(0.5, "f32")
_two_31, _largest = _splat(2.0**31, "f32"), _splat(3.4028234663852886e38, "f32")


@inline
def _byte(x):
    """C's (int8_t) of f32 lanes as i32: truncated, low byte with its sign; 0 where no i32 holds the value."""
    fits = v.where_less(v.absolute(x), _two_31(), x, _zero())
    return v.widen(v.i32_to_i8(v.truncate_to_i32(fits)))


@inline
def _reciprocal(d):
    return v.np.float32(1) / d if d != v.np.float32(0) else v.np.float32(0)


@inline
def _first_equal(x, y, like_x, like_y, wanted):
    """The lane of x and y, as one row of 32, where like_x and like_y first equal `wanted`; 0 without one."""
    w = v.splat_f32(wanted)
    bits = v.equal_bits(like_x, w) | (v.equal_bits(like_y, w) << 16)
    i = v.lowest_bit(bits)
    if i < 16:
        return v.lane(x, i)
    if i < 32:
        return v.lane(y, i - 16)
    return v.np.float32(0)


@inline
def _largest_signed(x, y):
    """First value of largest magnitude, with its sign; NaNs never win, +0 if there is no other."""
    mx, my = v.maximum(v.absolute(x), _zero()), v.maximum(v.absolute(y), _zero())
    largest = v.hmax(v.maximum(mx, my))
    if largest == v.np.float32(0):
        return largest
    return _first_equal(x, y, mx, my, largest)


@inline
def _least(x, y):
    """NaNs never win, nor what lies beyond the finite; of -0 and +0 the first one."""
    low = v.np.float32(0) - v.hmax(v.negative(v.minimum(x, v.minimum(y, _largest()))))
    if low == v.np.float32(0):
        return _first_equal(x, y, x, y, low)
    return low


@inline
def _greatest(x, y):
    high = v.hmax(v.maximum(x, v.maximum(y, v.negative(_largest()))))
    if high == v.np.float32(0):
        return _first_equal(x, y, x, y, high)
    return high


_lowest_i32, _least_i8, _most_i8 = _splat(-(2.0**31), "f32"), _splat(-128.0, "f32"), _splat(127.0, "f32")
_exact = _splat(2.0**22, "f32")
_low_8, _high_8 = v.shuffler([*range(8)]), v.shuffler([*range(8, 16)])
_low_4, _high_4 = v.shuffler([*range(4)]), v.shuffler([*range(4, 8)])
_low_2, _high_2 = v.shuffler([0, 1]), v.shuffler([2, 3])


@inline
def _largest_magnitude(x, y):
    """The order of x86's vectors counts where there are NaNs: `maximum` keeps its second operand (rounding.py:
    vector_maximum)."""
    ax, ay = v.absolute(x), v.absolute(y)
    m8 = v.maximum(v.maximum(v.maximum(_low_8(ax), _high_8(ax)), _low_8(ay)), _high_8(ay))
    m4 = v.maximum(_high_4(m8), _low_4(m8))
    m2 = v.maximum(_low_2(m4), _high_2(m4))
    first, second = v.lane(m2, 0), v.lane(m2, 1)
    return first if first > second else second


@inline
def _whole(x):
    """To the nearest whole number, halves to even, as f32; -2^31 for what no i32 holds."""
    fits = v.where_less(v.absolute(x), _two_31(), x, _lowest_i32())
    return v.where_less(v.absolute(fits), _exact(), v.round_even(fits), fits)


def _put_nibbles(layout):
    """-> f(block, q, r): i32 lanes of values 0 to 15 and 16 to 31; bit 4 goes to `qh` where there is one."""
    at, fifths = _offset(layout, "qs"), "qh" in layout.fields
    high = _offset(layout, "qh") if fifths else U(0)
    low_bits, four, fifth = _splat(15), _splat(4), _splat(16)

    @inline
    def put(block, q, r):
        if fifths:
            v.store(block + at, v.low_u8((q & low_bits()) | (r << four())))
            x, y = v.to_f32(q & fifth()), v.to_f32(r & fifth())
            clear = v.equal_bits(x, _zero()) | (v.equal_bits(y, _zero()) << 16)
            v.put_i32(block + high, v.np.int32(~clear))
        else:  # a value that is no nibble (of an infinite block) spills over, as in C
            v.store(block + at, v.low_u8(q | (r << four())))

    return put


def _encoder_scaled(layout, steps):
    """Q4_0 (8 steps a side), Q5_0 (16): the scale maps the value of largest magnitude to -steps."""

    def encoder():
        d_at, put = _offset(layout, "d"), _put_nibbles(layout)
        middle, most = _splat(steps + 0.5, "f32"), _splat(2.0 * steps - 1, "f32")
        divisor = v.np.float32(-steps)

        @inline
        def encode(block, x, y):
            d = _largest_signed(x, y) / divisor
            scale = v.splat_f32(_reciprocal(d))
            q = v.truncate_to_i32(v.minimum(v.to_f32(_byte(x * scale + middle())), most()))
            r = v.truncate_to_i32(v.minimum(v.to_f32(_byte(y * scale + middle())), most()))
            v.put_f16(block + d_at, d)
            put(block, q, r)

        return encode

    return encoder


def _encoder_with_minimum(layout, steps):
    """Q4_1 (15 steps), Q5_1 (31): from the least value to the greatest."""

    def encoder():
        d_at, m_at, put = _offset(layout, "d"), _offset(layout, "m"), _put_nibbles(layout)
        most, divisor = _splat(15.0, "f32"), v.np.float32(steps)
        bounded = steps == 15

        @inline
        def encode(block, x, y):
            least = _least(x, y)
            d = (_greatest(x, y) - least) / divisor
            scale, low = v.splat_f32(_reciprocal(d)), v.splat_f32(least)
            q = _byte((x - low) * scale + _half_f32())
            r = _byte((y - low) * scale + _half_f32())
            if bounded:
                q = v.truncate_to_i32(v.minimum(v.to_f32(q), most()))
                r = v.truncate_to_i32(v.minimum(v.to_f32(r), most()))
            v.put_f16(block + d_at, d)
            v.put_f16(block + m_at, least)
            put(block, q, r)

        return encode

    return encoder


def _encoder_bytes(layout):
    """Q8_0 and Q8_1: the scale maps the largest magnitude to 127."""

    def encoder():
        d_at, at = _offset(layout, "d"), _offset(layout, "qs")
        with_sum = "s" in layout.fields
        s_at = _offset(layout, "s") if with_sum else U(0)

        @inline
        def encode(block, x, y):
            most = _largest_magnitude(x, y)
            d = most / v.np.float32(127)
            scale = v.splat_f32(v.np.float32(127) / most if most != v.np.float32(0) else v.np.float32(0))
            q, r = _whole(x * scale), _whole(y * scale)
            v.put_f16(block + d_at, d)
            if with_sum:
                total = v.hsum(v.truncate_to_i32(q) + v.truncate_to_i32(r))
                v.put_f16(block + s_at, d * v.np.float32(total))
            q, r = v.maximum(v.minimum(q, _most_i8()), _least_i8()), v.maximum(v.minimum(r, _most_i8()), _least_i8())
            v.store(block + at, v.i32_to_i8(v.truncate_to_i32(q)))
            v.store(block + at + U(16), v.i32_to_i8(v.truncate_to_i32(r)))

        return encode

    return encoder


def nearest_level(entries):
    """-> f(x): i32 lanes, the index of the level nearest to each x, the upper one of two; the highest for a NaN."""
    bounds = v.constant("f32", [(int(a) + int(b)) / 2 for a, b in itertools.pairwise(entries)] + [0])
    no, yes = v.constant("i32", [0] * 16), v.constant("i32", [1] * 16)

    @v.device
    def nearest(x):
        """How many of the bounds between levels do not lie above each x."""
        index = no()
        for i in range(15):
            index += v.where_less(x, v.splat_f32(v.lane(bounds(), i)), no(), yes())
        return index

    return nearest


def _encoder_levels(layout, entries):
    """IQ4_NL as ops write it: the scale maps the value of largest magnitude to the lowest level, then is fitted to the
    levels nearest to all values."""

    def encoder():
        d_at, put, level = _offset(layout, "d"), _put_nibbles(layout), v.table(entries)
        lowest, tiny, nearest = v.np.float32(entries[0]), iq4_nl.TINY, nearest_level(entries)

        @v.device
        def in_order(total, x):
            for i in range(16):
                total += v.lane(x, i)
            return total

        @v.device
        def encode(block, x, y):
            extreme = _largest_signed(x, y)
            zero = abs(extreme) < tiny
            by = v.splat_f32(v.np.float32(0) if zero else v.np.float32(1) / (extreme / lowest))
            q, r = nearest(by * x), nearest(by * y)
            a, b = v.to_f32(v.widen(level(v.low_u8(q)))), v.to_f32(v.widen(level(v.low_u8(r))))
            wa, wb = x * x * a, y * y * b
            lx = in_order(in_order(v.np.float32(0), wa * x), wb * y)
            l2 = in_order(in_order(v.np.float32(0), wa * a), wb * b)
            d = lx / l2 if l2 > v.np.float32(0) and not zero else v.np.float32(0)
            v.put_f16(block + d_at, d)
            put(block, q, r)

        return encode

    return encoder


def _first_of_each_power():
    """For K from -149 to 128 the least float whose logarithm, rounded to a float, is at least K."""
    powers = np.arange(-149, 129)
    with np.errstate(all="ignore"):
        first = np.ldexp(np.float64(1), powers).astype(np.float32)  # the last one is infinite
        for _ in range(64):
            lower = np.nextafter(first, np.float32(0))
            still = (lower > 0) & (np.log2(lower, dtype=np.float64).astype(np.float32) >= powers)
            first = np.where(still, lower, first)
    return first


def _nearest_number(entries):
    """-> f(x, d): i32 lanes, of each x the number of the first level nearest to x / d; 0 for a NaN."""
    levels = v.constant("f32", [float(e) for e in entries])

    @v.device
    def nearest(x, d):
        best, least = v.zero_i32(), v.absolute(v.splat_f32(v.lane(levels(), 0) * d) - x)
        for i in range(1, 16):
            error = v.absolute(v.splat_f32(v.lane(levels(), i) * d) - x)
            best = v.where_less(error, least, v.splat_i32(v.np.int32(i)), best)
            least = v.where_less(error, least, error, least)
        return best

    return nearest


def _encoder_exponent(layout, entries):
    """MXFP4: the power of two of the largest magnitude, and the levels nearest to the values (ggml-quants.c
    quantize_row_mxfp4_ref)."""

    def encoder():
        e_at, put, nearest = _offset(layout, "e"), _put_nibbles(layout), _nearest_number(entries)
        first = memory(_first_of_each_power())
        none, infinity = v.np.float32(0), v.np.float32(v.np.inf)

        @v.device
        def exponent(most):
            if not none < most < infinity:
                return v.np.int64(0)
            power = v.np.int64(-149)
            while power < 128 and most >= v.f32_at(first() + U(4 * (power + 150))):
                power += 1
            return (power + 125) & 255

        @v.device
        def encode(block, x, y):
            largest = v.maximum(v.maximum(v.absolute(x), _zero()), v.maximum(v.absolute(y), _zero()))
            v.put_u8(block + e_at, v.np.uint8(exponent(v.hmax(largest))))
            d = v.e8m0_at(block + e_at)
            put(block, nearest(x, d), nearest(y, d))

        return encode

    return encoder


ENCODERS = {
    "Q4_0": _encoder_scaled(q4_0.LAYOUT, 8),
    "Q4_1": _encoder_with_minimum(q4_1.LAYOUT, 15),
    "Q5_0": _encoder_scaled(q5_0.LAYOUT, 16),
    "Q5_1": _encoder_with_minimum(q5_1.LAYOUT, 31),
    "Q8_0": _encoder_bytes(q8_0.LAYOUT),
    "Q8_1": _encoder_bytes(q8_1.LAYOUT),
    "IQ4_NL": _encoder_levels(iq4_nl.LAYOUT, iq4_nl.LEVELS),
    "MXFP4": _encoder_exponent(mxfp4.LAYOUT, fp4.LEVELS),
}
