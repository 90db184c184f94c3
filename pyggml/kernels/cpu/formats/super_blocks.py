"""What super-blocks of all types have in common: numbers packed into bytes, and the sixteen values of a place.

Knows no type. Imported by factories only (Numba).
"""

from pyggml import simd as v
from pyggml.jit import device

U = v.U
_load_32 = v.load_u8x32


def lanes(index, shift, mask, to=0):
    """-> f(bytes): i32 lanes (bytes[index] >> shift & mask) << to, each list one entry a lane."""
    pick, down = v.shuffler(index), v.constant("i32", shift)
    keep, up = v.constant("i32", mask), v.constant("i32", [to] * len(index))
    if to == 0:
        return device(lambda x: (v.widen(pick(x)) >> down()) & keep())
    return device(lambda x: ((v.widen(pick(x)) >> down()) & keep()) << up())


def _words(values):
    """Sixteen u32 of a register of 64 bytes: values[0] for its first half, values[1] for its second."""
    return v.constant("u32", [values[0]] * 8 + [values[1]] * 8)


def every_byte(value, n=64):
    return v.constant("u8", [value] * n)


def shifted(left, right):
    """-> f(words): the halves of a register moved left, then right, by so many bits each."""
    up, down = _words(left), _words(right)
    if left == (0, 0):
        return device(lambda x: x >> down())
    if right == (0, 0):
        return device(lambda x: x << up())
    return device(lambda x: (x << up()) >> down())


twice = v.shuffler([*range(32), *range(32)])


def bits_of(at, both, low, width, to=0):
    """-> f(addr): 64 values out of the 32 bytes at addr + at: `width` bits from bit low[0] for the first 32 values,
    from low[1] for the others, moved to bit `to`. `both` puts the bytes in both halves."""
    move = shifted(tuple(max(to - x, 0) for x in low), tuple(max(x - to, 0) for x in low))
    keep, at = every_byte(((1 << width) - 1) << to), U(at)

    @device
    def unpack(addr):
        return v.as_bytes(move(v.as_words(both(_load_32(addr + at))))) & keep()

    return unpack


def half_at(at):
    """-> f(addr): the f16 at addr + at in lane 7 of f32 x 8; nothing behind it is read. `at` is 14 at least."""
    before = U(at - 14)

    @device
    def load(addr):
        return v.f16_to_f32(v.load_u16x8(addr + before))

    return load


def pick(blocks):
    """-> f(addr, number): sixteen values, number 0 to 15 of the super-block at addr, as f32 lanes."""
    q0, q1, q2, q3 = blocks.quants
    p0, p1, p2, p3 = (v.shuffler([*range(16 * i, 16 * i + 16)]) for i in range(4))
    scales, has_min, a_scale = blocks.scales, blocks.has_min, blocks.run // 16 - 1
    less = v.constant("i32", [blocks.bias] * 16)

    @device
    def quarter(x, number):
        if number == 0:
            return v.widen(p0(x))
        if number == 1:
            return v.widen(p1(x))
        if number == 2:
            return v.widen(p2(x))
        return v.widen(p3(x))

    @device
    def whole(addr, number):
        if number < 4:
            return quarter(q0(addr), number)
        if number < 8:
            return quarter(q1(addr), number - 4)
        if number < 12:
            return quarter(q2(addr), number - 8)
        return quarter(q3(addr), number - 12)

    @device
    def with_minimum(addr, number):
        w, m = scales(addr)
        q = v.to_f32(whole(addr, number))
        return q * v.splat_f32(v.lane(w, number >> a_scale)) + v.splat_f32(v.lane(m, number >> a_scale))

    @device
    def without(addr, number):
        q = v.to_f32(whole(addr, number) - less())
        return q * v.splat_f32(v.lane(scales(addr), number >> a_scale))

    return with_minimum if has_min else without
