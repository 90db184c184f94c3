"""Blocks of one, two and four bits a value, written as quants/ writes them, to the bit.

Owns how these layouts are filled; knows no op. Imported by factories only (Numba). Values are taken one by one: nobody
waits for these types.
"""

import numpy as np

from pyggml import simd as v
from pyggml.jit import device
from pyggml.quants import fp4, mxfp4, nvfp4, q1_0, q2_0, tq1_0, tq2_0
from pyggml.simd.constants import memory

U = v.U
_ZERO, _HALF, _ONE = (np.float32(x) for x in (0, 0.5, 1))
SPARE = 4 * 256
"""Where in an encoder's work memory bytes are free, behind the values."""


def _at(layout, field):
    return U(layout.fields[field][1])


def _put_byte(at, q):
    v.put_u8(at, np.uint8(q & 255))


_put_byte = device(_put_byte)


def _q1_0():
    d_at, q_at = _at(q1_0.LAYOUT, "d"), _at(q1_0.LAYOUT, "qs")

    @device
    def encode(block, room):
        total = _ZERO
        for i in range(16):
            q = 0
            for j in range(8):
                x = v.f32_at(room + U(32 * i + 4 * j))
                total += abs(x)
                if x >= _ZERO:
                    q |= 1 << j
            _put_byte(block + q_at + U(i), q)
        v.put_f16(block + d_at, total / np.float32(128))

    return encode


@device
def _greatest(at, n):
    """The largest magnitude of n values; NaNs never win."""
    most = _ZERO
    for i in range(n):
        x = abs(v.f32_at(at + U(4 * i)))
        if x > most:
            most = x
    return most


@device
def _rounded(x):
    """roundf, where |x| is below 2^31."""
    whole = np.int64(x)
    away = abs(x - np.float32(whole)) >= _HALF
    return whole + (np.int64(1) if x > _ZERO else np.int64(-1)) if away else whole


def _q2_0():
    d_at, q_at = _at(q2_0.LAYOUT, "d"), _at(q2_0.LAYOUT, "qs")
    limit = np.float32(2.0**31)

    @device
    def encode(block, room):
        d = _greatest(room, 64)
        by = _ONE / d if d > _ZERO else _ZERO
        v.put_f16(block + d_at, d)
        for i in range(16):
            q = 0
            for j in range(4):
                x = v.f32_at(room + U(16 * i + 4 * j)) * by
                if abs(x) < limit:
                    q |= max(0, min(3, _rounded(x) + 1)) << (2 * j)
            _put_byte(block + q_at + U(i), q)

    return encode


@device
def _trits(room):
    """The scale of 256 values, which become bytes at SPARE: C's `int xi = lroundf(x * id) + 1`."""
    d = _ZERO
    for i in range(256):
        x = abs(v.f32_at(room + U(4 * i)))
        d = d if d > x else x
    by = _ONE / d if d != _ZERO else _ZERO
    for i in range(256):
        x = np.float64(v.f32_at(room + U(4 * i)) * by)
        q = np.int64(1)  # of what no i64 holds
        if abs(x) < 2.0**63:
            q = np.int64(x + (0.5 if x > 0.0 else -0.5)) + 1
        _put_byte(room + U(SPARE + i), q)
    return d


def _tq1_0():
    d_at, q_at, h_at = (_at(tq1_0.LAYOUT, field) for field in ("d", "qs", "qh"))

    @device
    def pack(trit, step, count, to):
        """`count` of five digits, `step` bytes apart."""
        q = np.int64(0)
        for i in range(5):
            q = q * 3 + (np.int64(v.u8_at(trit + U(step * i))) if i < count else 0)
        _put_byte(to, ((q & 255) * 256 + 242) // 243)

    @device
    def encode(block, room):
        v.put_f16(block + d_at, _trits(room))
        trits = room + U(SPARE)
        for i in range(32):
            pack(trits + U(i), 32, 5, block + q_at + U(i))
        for i in range(16):
            pack(trits + U(160 + i), 16, 5, block + q_at + U(32 + i))
        for i in range(4):
            pack(trits + U(240 + i), 4, 4, block + h_at + U(i))

    return encode


def _tq2_0():
    d_at, q_at = _at(tq2_0.LAYOUT, "d"), _at(tq2_0.LAYOUT, "qs")

    @device
    def encode(block, room):
        v.put_f16(block + d_at, _trits(room))
        for i in range(64):
            trit = room + U(SPARE + (i >> 5) * 128 + (i & 31))
            q = np.int64(0)
            for j in range(4):
                q |= (np.int64(v.u8_at(trit + U(32 * j))) & 3) << (2 * j)
            _put_byte(block + q_at + U(i), q)

    return encode


_levels = memory(fp4.LEVELS.astype(np.float32))


@device
def _nearest(x, d):
    """The number of the first level nearest to x / d."""
    best, least = np.int64(0), abs(v.f32_at(_levels()) * d - x)
    for i in range(1, 16):
        error = abs(v.f32_at(_levels() + U(4 * i)) * d - x)
        if error < least:
            best, least = np.int64(i), error
    return best


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


def _mxfp4():
    e_at, q_at = _at(mxfp4.LAYOUT, "e"), _at(mxfp4.LAYOUT, "qs")
    scales, first = memory(np.append(fp4.E8M0, np.zeros(1, np.float32))), memory(_first_of_each_power())
    infinity = np.float32(np.inf)

    @device
    def exponent(most):
        if not _ZERO < most < infinity:
            return np.int64(0)
        power = np.int64(-149)
        while power < 128 and most >= v.f32_at(first() + U(4 * (power + 150))):
            power += 1
        return (power + 125) & 255

    @device
    def encode(block, room):
        e = exponent(_greatest(room, 32))
        d = v.f32_at(scales() + U(4 * e))
        _put_byte(block + e_at, e)
        for i in range(16):
            low, high = v.f32_at(room + U(4 * i)), v.f32_at(room + U(64 + 4 * i))
            _put_byte(block + q_at + U(i), _nearest(low, d) | _nearest(high, d) << 4)

    return encode


def _nvfp4():
    d_at, q_at = _at(nvfp4.LAYOUT, "d"), _at(nvfp4.LAYOUT, "qs")
    scales, most_of_all = memory(fp4.UE4M3), np.float32(448)

    @device
    def number(x, spare):
        """ggml-impl.h ggml_fp32_to_ue4m3."""
        if not x > _ZERO:
            return np.int64(0)
        x = min(x, most_of_all)
        v.put_f32(spare, x)
        bits = np.int64(v.i32_at(spare))
        exponent = (bits >> 23) - 120
        if exponent <= 0:
            return min(np.int64(x * np.float32(512) + _HALF), np.int64(7))
        rounded = (exponent << 3) + ((bits >> 20) & 7) + ((bits >> 19) & 1)
        return min(rounded, np.int64(0x7E)) if rounded < 120 else np.int64(0x7E)

    @device
    def encode(block, room):
        for part in range(4):
            x = room + U(64 * part)
            u = number(_greatest(x, 16) / np.float32(6), room + U(SPARE))
            d = v.f32_at(scales() + U(4 * u))
            _put_byte(block + d_at + U(part), u)
            for i in range(8):
                low, high = v.f32_at(x + U(4 * i)), v.f32_at(x + U(32 + 4 * i))
                _put_byte(block + q_at + U(8 * part + i), _nearest(low, d) | _nearest(high, d) << 4)

    return encode


ENCODERS = {"q1_0": _q1_0, "q2_0": _q2_0, "tq1_0": _tq1_0, "tq2_0": _tq2_0, "mxfp4": _mxfp4, "nvfp4": _nvfp4}
"""kind -> () -> encode(block, room): the values at `room` become the block."""
