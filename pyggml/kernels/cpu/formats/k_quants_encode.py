"""K quants and IQ4_XS, written as quants/ writes them: to the bit, where the values are finite.

Owns how vector code fills these layouts; the searches for the scales are search.py's. Imported by factories only (Numba).
A run is a lane: value j of run r lies at 64 j + 4 r.
"""

from pyggml import simd as v
from pyggml.jit import device
from pyggml.kernels.cpu import search
from pyggml.kernels.cpu.formats import WRITE_ROOM
from pyggml.kernels.cpu.formats.blocks_32_encode import nearest_level
from pyggml.quants import iq4_nl, iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k
from pyggml.quants.search import TINY

U, np = v.U, v.np
VALUES, X, WEIGHTS, Q, LEVEL, LEVELS = (U(n) for n in (0, 1024, 3072, 5120, 7168, 9216))
SCALE, LOW, OTHER = U(9728), U(9792), U(9856)
assert OTHER + U(64) == WRITE_ROOM  # the 256 values in their order come first

_zero, _tiny = v.zero_f32, v.constant("f32", [float(TINY)] * 16)
_byte = v.constant("i32", [255] * 16)
_magic, _mask, _bias = v.constant("f32", [12582912.0] * 16), v.constant("i32", [0x7FFFFF] * 16), v.constant(
    "i32", [0x400000] * 16
)  # fmt: skip
_nearest = search._words()


@device
def _nearest_i32(x):
    """ggml-quants.c nearest_int."""
    return (v.f32_bits(x + _magic()) & _mask()) - _bias()


@device
def _splat(x):
    return v.splat_f32(np.float32(x))


def _at(layout, field):
    return U(layout.fields[field][1])


def _spread(k):
    """-> f(room): the values, run by run a lane. Lanes without a run hold zeros."""
    runs = 256 // k

    @device
    def spread(room):
        for j in range(k):
            v.store(room + X + U(64 * j), _zero())
        for run in range(runs):
            for j in range(k):
                v.put_f32(room + X + U(64 * j + 4 * run), v.f32_at(room + VALUES + U(4 * (run * k + j))))

    return spread


def _finish(k, least, most):
    """-> f(room, d, m): levels = (x + m) / d to the nearest, from `least` to `most`, less `least`; those of the search, in
    Q, where d is 0. One byte each, level j of run r at LEVELS + 16 j + r."""

    @device
    def finish(room, d, m):
        low, high = _splat(least), _splat(most)
        for j in range(k):
            x = v.load_f32(room + X + U(64 * j)) + m
            level = _nearest(x / d, low, high) - low
            level = v.where_equal(d, _zero(), v.load_f32(room + Q + U(64 * j)), level)
            v.store(room + LEVELS + U(16 * j), v.low_u8(v.truncate_to_i32(level)))

    return finish


def _level(k):
    """-> f(room, i): level of value i of the block."""

    @device
    def level(room, i):
        return np.int64(v.u8_at(room + LEVELS + U(16 * (i % k) + i // k)))

    return level


def _put_planes(k, shift, keep, bits, planes):
    """-> f(room, to): `keep` bits from bit `shift` of each level: `planes` levels that lie 32 apart share a byte."""
    level = _level(k)

    @device
    def put(room, to):
        for i in range(0, 256, 32 * planes):
            for j in range(32):
                byte = 0
                for plane in range(planes):
                    byte |= ((level(room, i + 32 * plane + j) >> shift) & keep) << (bits * plane)
                v.put_u8(to + U(i // planes + j), np.uint8(byte))

    return put


@device
def _greatest(at, n):
    """The greatest of n numbers, 0 if none lies above it."""
    most = np.float32(0)
    for i in range(n):
        x = v.f32_at(at + U(4 * i))
        if x > most:
            most = x
    return most


@device
def _largest_signed(at, n):
    """The first of n numbers of largest magnitude, with its sign; 0 if there is no other."""
    found, magnitude = np.float32(0), np.float32(0)
    for i in range(n):
        x = v.f32_at(at + U(4 * i))
        if abs(x) > magnitude:
            found, magnitude = x, abs(x)
    return found


@device
def _part_of_most(at, n, steps, to):
    """Numbers at `at` in `steps` parts of the greatest, which is returned: low bytes, as f32 lanes at `to`."""
    most = _greatest(at, n)
    inverse = np.float32(steps) / most if most > np.float32(0) else np.float32(0)
    v.store(to, v.to_f32(_nearest_i32(_splat(inverse) * v.load_f32(at)) & _byte()))
    return most


def _search_minimums(k, nmax, rmin, steps, absolute):
    """-> f(room): SCALE and LOW (the minimum, its sign turned) of each run, and Q."""
    look = device(search.scales_and_minimums())
    limit = np.float32(rmin)

    @device
    def find(room):
        squares = _zero()
        low = high = v.load_f32(room + X)
        for j in range(k):
            x = v.load_f32(room + X + U(64 * j))
            squares += x * x
            low, high = v.where_less(x, low, x, low), v.where_less(high, x, x, high)
        base = _zero() if absolute else v.sqrt(squares / _splat(k))
        for j in range(k):
            v.store(room + WEIGHTS + U(64 * j), base + v.absolute(v.load_f32(room + X + U(64 * j))))
        look(
            room + X, room + WEIGHTS, room + Q, room + SCALE, room + LOW, room + LEVEL, 16, k, nmax, limit, steps,
            1 if absolute else 0,
        )  # fmt: skip
        low = v.where_less(_zero(), low, _zero(), low)
        v.store(room + SCALE, v.where_equal(low, high, _zero(), v.load_f32(room + SCALE)))
        v.store(room + LOW, v.negative(v.load_f32(room + LOW)))
        for j in range(k):
            at = room + Q + U(64 * j)
            v.store(at, v.where_equal(low, high, _zero(), v.load_f32(at)))

    return find


def _q4_k_and_q5_k(layout, nmax, rmin, steps):
    """quants/q4_k.py: scaled."""
    spread, find, finish = _spread(32), _search_minimums(32, nmax, rmin, steps, False), _finish(32, 0, nmax)
    d_at, m_at, scales_at, q_at = (_at(layout, field) for field in ("d", "dmin", "scales", "qs"))
    fifths = "qh" in layout.fields
    high_at = _at(layout, "qh") if fifths else U(0)
    put_low, put_high = _put_planes(32, 0, 15, 4, 2), _put_planes(32, 4, 1, 1, 8)

    @device
    def number(at, i):
        return np.int64(v.f32_at(at + U(4 * i)))

    @device
    def encode(block, room):
        spread(room)
        find(room)
        most_scale = _part_of_most(room + SCALE, 8, 63, room + OTHER)
        scales = v.minimum(v.load_f32(room + OTHER), _splat(63))
        most_low = _part_of_most(room + LOW, 8, 63, room + OTHER)
        lows = v.minimum(v.load_f32(room + OTHER), _splat(63))
        v.put_f16(block + d_at, most_scale / np.float32(63))
        v.put_f16(block + m_at, most_low / np.float32(63))
        v.store(room + SCALE, scales)
        v.store(room + LOW, lows)
        for i in range(4):
            s, t = number(room + SCALE, i), number(room + SCALE, i + 4)
            m, n = number(room + LOW, i), number(room + LOW, i + 4)
            v.put_u8(block + scales_at + U(i), np.uint8(s | (t >> 4) << 6))
            v.put_u8(block + scales_at + U(i + 4), np.uint8(m | (n >> 4) << 6))
            v.put_u8(block + scales_at + U(i + 8), np.uint8((t & 15) | (n & 15) << 4))
        finish(room, _splat(v.f16_at(block + d_at)) * scales, _splat(v.f16_at(block + m_at)) * lows)
        put_low(room, block + q_at)
        if fifths:
            put_high(room, block + high_at)

    return encode


def _q2_k():
    """quants/q2_k.py: quantize."""
    spread, find, finish = _spread(16), _search_minimums(16, 3, -0.5, 15, True), _finish(16, 0, 3)
    d_at, m_at, scales_at, q_at = (_at(q2_k.LAYOUT, field) for field in ("d", "dmin", "scales", "qs"))
    put, four, low_bits = _put_planes(16, 0, 3, 2, 4), v.constant("i32", [4] * 16), v.constant("i32", [15] * 16)

    @device
    def encode(block, room):
        spread(room)
        find(room)
        most_scale = _part_of_most(room + SCALE, 16, 15, room + OTHER)
        scales = v.truncate_to_i32(v.load_f32(room + OTHER))
        most_low = _part_of_most(room + LOW, 16, 15, room + OTHER)
        both = (scales | (v.truncate_to_i32(v.load_f32(room + OTHER)) << four())) & _byte()
        v.put_f16(block + d_at, most_scale / np.float32(15))
        v.put_f16(block + m_at, most_low / np.float32(15))
        v.store(block + scales_at, v.low_u8(both))
        d = _splat(v.f16_at(block + d_at)) * v.to_f32(both & low_bits())
        finish(room, d, _splat(v.f16_at(block + m_at)) * v.to_f32(both >> four()))
        put(room, block + q_at)

    return encode


def _settle(k, nmax):
    """-> f(room, scale): SCALE, and nmax added to Q; both are 0 in runs whose OTHER, the magnitude, is tiny."""

    @device
    def settle(room, scale):
        magnitude, middle = v.load_f32(room + OTHER), _splat(nmax)
        v.store(room + SCALE, v.where_less(magnitude, _tiny(), _zero(), scale))
        for j in range(k):
            at = room + Q + U(64 * j)
            v.store(at, v.where_less(magnitude, _tiny(), _zero(), v.load_f32(at) + middle))

    return settle


def _q3_k():
    """quants/q3_k.py: quantize."""
    spread, settle, finish = _spread(16), _settle(16, 4), _finish(16, -4, 3)
    look = device(search.scales_by_refinement())
    high_at, q_at, scales_at, d_at = (_at(q3_k.LAYOUT, field) for field in ("hmask", "qs", "scales", "d"))
    put_high, put_low = _put_planes(16, 2, 1, 1, 8), _put_planes(16, 0, 3, 2, 4)

    @device
    def number(room, i):
        return np.int64(v.f32_at(room + LOW + U(4 * i))) + 32

    @device
    def encode(block, room):
        spread(room)
        look(room + X, room + Q, room + SCALE, room + LOW, room + OTHER, 16, 16, 4)
        lx, l2 = v.load_f32(room + SCALE), v.load_f32(room + LOW)
        settle(room, v.where_less(_zero(), l2, lx / l2, _zero()))
        most = _largest_signed(room + SCALE, 16)
        inverse = np.float32(-32) / most if most != np.float32(0) else np.float32(0)
        whole = _nearest(_splat(inverse) * v.load_f32(room + SCALE), _splat(-32), _splat(31))
        if most == np.float32(0):
            whole = _splat(-32)
        v.store(room + LOW, whole)
        v.put_f16(block + d_at, np.float32(1) / inverse if most != np.float32(0) else np.float32(0))
        for i in range(8):
            low = (number(room, i) & 15) | (number(room, i + 8) & 15) << 4
            v.put_u8(block + scales_at + U(i), np.uint8(low))
        for i in range(4):
            upper = number(room, i) >> 4 | (number(room, i + 4) >> 4) << 2
            upper |= (number(room, i + 8) >> 4) << 4 | (number(room, i + 12) >> 4) << 6
            v.put_u8(block + scales_at + U(8 + i), np.uint8(upper))
        finish(room, _splat(v.f16_at(block + d_at)) * whole, _zero())
        put_high(room, block + high_at)
        put_low(room, block + q_at)

    return encode


def _q6_k():
    """quants/q6_k.py: quantize."""
    spread, settle, finish = _spread(16), _settle(16, 32), _finish(16, -32, 31)
    look, level = device(search.scales()), _level(16)
    low_at, high_at, scales_at, d_at = (_at(q6_k.LAYOUT, field) for field in ("ql", "qh", "scales", "d"))
    size, tiny = q6_k.LAYOUT.itemsize, TINY

    @device
    def encode(block, room):
        spread(room)
        look(room + X, room + Q, room + SCALE, room + OTHER, room + LEVEL, 16, 16, 32)
        settle(room, v.load_f32(room + SCALE))
        most = _largest_signed(room + SCALE, 16)
        if abs(most) < tiny:
            for i in range(size):
                v.put_u8(block + U(i), np.uint8(0))
            return
        inverse = np.float32(-128) / most
        whole = _nearest(_splat(inverse) * v.load_f32(room + SCALE), _splat(-128), _splat(127))
        v.put_f16(block + d_at, np.float32(1) / inverse)
        v.store(block + scales_at, v.i32_to_i8(v.truncate_to_i32(whole)))
        finish(room, _splat(v.f16_at(block + d_at)) * whole, _zero())
        for half in range(2):
            for i in range(32):
                a, b = level(room, 128 * half + i), level(room, 128 * half + 32 + i)
                c, d = level(room, 128 * half + 64 + i), level(room, 128 * half + 96 + i)
                v.put_u8(block + low_at + U(64 * half + i), np.uint8((a & 15) | (c & 15) << 4))
                v.put_u8(block + low_at + U(64 * half + 32 + i), np.uint8((b & 15) | (d & 15) << 4))
                v.put_u8(
                    block + high_at + U(32 * half + i), np.uint8(a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6)
                )

    return encode


def _iq4_xs():
    """quants/iq4_xs.py: quantize; the search is iq4_nl.py's best_scale."""
    spread, level, largest = _spread(32), _level(32), search._largest()
    nearest, value = nearest_level(iq4_nl.LEVELS), v.table(iq4_nl.LEVELS)
    d_at, high_at, low_at, q_at = (_at(iq4_xs.LAYOUT, field) for field in ("d", "scales_h", "scales_l", "qs"))
    lowest = np.float32(iq4_nl.LEVELS[0])

    @device
    def sums(room, by):
        qx, q2 = _zero(), _zero()
        for j in range(32):
            x = v.load_f32(room + X + U(64 * j))
            q = v.to_f32(v.widen(value(v.low_u8(nearest(by * x)))))
            wq = x * x * q
            qx += wq * x
            q2 += wq * q
        return qx, q2

    @device
    def number(room, i):
        return np.int64(v.f32_at(room + LOW + U(4 * i))) + 32

    @device
    def encode(block, room):
        spread(room)
        extreme, magnitude = largest(room + X, U(64), 32)
        d = best = _zero()
        for turn in range(16):  # first the way that maps the largest value to the lowest level from below
            if turn == 0:
                by = _splat(1) / (v.negative(extreme) / _splat(lowest))
            else:
                by = _splat(np.float32(turn - 8) + lowest) / extreme
            qx, q2 = sums(room, by)
            now, bound = (q2, _zero()) if turn == 0 else (qx * qx, best * q2)
            better = v.where_less(_zero(), q2, v.where_less(bound, now, _splat(1), _zero()), _zero())
            d = v.where_less(_zero(), better, qx / q2, d)
            best = v.where_less(_zero(), better, d * qx, best)
        v.store(room + SCALE, v.where_less(magnitude, _tiny(), _zero(), d))
        whole_d = -_largest_signed(room + SCALE, 8) / np.float32(32)
        inverse = np.float32(1) / whole_d if whole_d != np.float32(0) else np.float32(0)
        whole = _nearest(_splat(inverse) * v.load_f32(room + SCALE), _splat(-32), _splat(31))
        v.store(room + LOW, whole)
        part = _splat(whole_d) * whole
        by = v.where_equal(part, _zero(), _zero(), _splat(1) / part)
        for j in range(32):
            v.store(room + LEVELS + U(16 * j), v.low_u8(nearest(by * v.load_f32(room + X + U(64 * j)))))
        v.put_f16(block + d_at, whole_d)
        high = 0
        for i in range(8):
            high |= (number(room, i) >> 4) << (2 * i)
        v.put_u16(block + high_at, np.uint16(high))
        for i in range(4):
            v.put_u8(block + low_at + U(i), np.uint8((number(room, 2 * i) & 15) | (number(room, 2 * i + 1) & 15) << 4))
        for run in range(8):
            for i in range(16):
                byte = level(room, 32 * run + i) | level(room, 32 * run + 16 + i) << 4
                v.put_u8(block + q_at + U(16 * run + i), np.uint8(byte))

    return encode


ENCODERS = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": lambda: _q4_k_and_q5_k(q4_k.LAYOUT, 15, -1.0, 20),
    "Q5_K": lambda: _q4_k_and_q5_k(q5_k.LAYOUT, 31, -0.5, 15),
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}
"""Type -> () -> encode(block, room): the 256 values at `room` become the block."""
