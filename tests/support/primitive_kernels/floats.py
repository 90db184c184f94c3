"""Words on f32 lanes and their conversions; each result goes to its own row of `out`."""

from pyggml import simd as v

U = v.U
np = v.np


def arithmetic():
    """-> kernel(x, y, z, n, out): ARITHMETIC of tests/simd/test_floats.py, in its order."""

    def kernel(x, y, z, n, out):
        row = U(4 * n)
        for i in range(0, n, 16):
            o = out + U(4 * i)
            a, b, c = v.load_f32(x + U(4 * i)), v.load_f32(y + U(4 * i)), v.load_f32(z + U(4 * i))
            v.store(o, a + b)
            v.store(o + row, a - b)
            v.store(o + U(2) * row, a * b)
            v.store(o + U(3) * row, a / b)
            v.store(o + U(4) * row, v.fma(a, b, c))
            v.store(o + U(5) * row, v.maximum(a, b))
            v.store(o + U(6) * row, v.minimum(a, b))
            v.store(o + U(7) * row, v.absolute(a))
            v.store(o + U(8) * row, v.negative(a))
            v.store(o + U(9) * row, v.sqrt(a))
            v.store(o + U(10) * row, v.where_less(a, b, c, a))
            v.store(o + U(11) * row, v.where_equal(a, b, c, a))
            v.store(o + U(12) * row, v.where_nan(a, b))
            v.store(o + U(13) * row, v.copy_sign(a, b))
            v.store(o + U(14) * row, v.bits_f32(v.f32_bits(a)))

    return kernel


def functions():
    """-> kernel(x, n, out): exp, exp2, tanh."""

    def kernel(x, n, out):
        row = U(4 * n)
        for i in range(0, n, 16):
            a, o = v.load_f32(x + U(4 * i)), out + U(4 * i)
            v.store(o, v.exp(a))
            v.store(o + row, v.exp2(a))
            v.store(o + U(2) * row, v.tanh(a))

    return kernel


def whole_numbers():
    """-> kernel(x, n, out): |x| < 2^22 rounded, then truncated and made f32 again."""

    def kernel(x, n, out):
        for i in range(0, n, 16):
            a, o = v.load_f32(x + U(4 * i)), out + U(4 * i)
            v.store(o, v.round_even(a))
            v.store(o + U(4 * n), v.to_f32(v.truncate_to_i32(a)))

    return kernel


def over_lanes():
    """-> kernel(x, n, out): for each 16 lanes their sum, maximum, lane i % 16, and whether x equals lane 3, is NaN."""

    def kernel(x, n, out):
        for i in range(0, n, 16):
            a = v.load_f32(x + U(4 * i))
            third = v.lane(a, (i >> 4) & 15)
            v.put_f32(out, v.hsum(a))
            v.put_f32(out + U(4), v.hmax(a))
            v.put_f32(out + U(8), third)
            v.put_i32(out + U(12), np.int32(v.equal_bits(a, v.splat_f32(third))))
            v.put_i32(out + U(16), np.int32(v.nan_bits(a, a)))
            out += U(20)

    return kernel


def from_half():
    """-> kernel(h, n, out): u16 lanes taken as f16, as bf16, and one by one as f16."""

    def kernel(h, n, out):
        for i in range(0, n, 16):
            a, o = v.load_u16(h + U(2 * i)), out + U(4 * i)
            v.store(o, v.f16_to_f32(a))
            v.store(o + U(4 * n), v.bf16_to_f32(a))
            for j in range(16):
                v.put_f32(o + U(8 * n + 4 * j), v.f16_at(h + U(2 * i + 2 * j)))

    return kernel


def to_half():
    """-> kernel(x, n, out): f32 lanes to f16, to bf16, and one by one as the scale of a block."""

    def kernel(x, n, out):
        for i in range(0, n, 16):
            a, o = v.load_f32(x + U(4 * i)), out + U(2 * i)
            v.store(o, v.f32_to_f16(a))
            v.store(o + U(2 * n), v.f32_to_bf16(a))
            for j in range(16):
                v.put_f16(o + U(4 * n + 2 * j), v.f32_at(x + U(4 * i + 4 * j)))

    return kernel
