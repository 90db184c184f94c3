"""Words on 16 rows at once. Must not know what is right."""

from pyggml import simd as v

U = v.U
np = v.np
WIDTH = 3


def transposed(keep):
    """-> kernel(src, stride, last, dst)"""
    turn = v.transposer(v.load_f32, keep)

    def kernel(src, stride, last, dst):
        turn(dst, src, U(stride), last)

    return kernel


def columns():
    """-> kernel(w, q, y, rows, out): results of WIDTH columns, four times, 1 KiB apart: integers from u8 and from i8
    weights, then floats. y: f32[3] scales, i32[3] starts, i8[3][4], f32[3][16]; out: columns 64 bytes apart."""
    t = v.TileWords(WIDTH)
    zero, start, start_zero, dot, dot_weights = t.zero, t.start, t.start_zero, t.dot_u8i8, t.dot_weights
    scale_add, fma_columns, load_scaled, store = t.scale_add, t.fma_columns, t.load_scaled, t.store_columns
    one = v.constant("f32", [1.0] * 16)

    def kernel(w, q, y, rows, out):
        v.store(out + U(8192), one())
        n = dot(start(y + U(12), 7), v.load_u8(q), y + U(24))
        store(scale_add(zero(), n, one(), out + U(8192)), out, U(64), 16, WIDTH)
        n = dot_weights(start_zero(), v.signed_weights(v.load_i8(q)), y + U(24))
        store(scale_add(zero(), n, v.load_f32(w), y), out + U(1024), U(64), 16, WIDTH)
        f = load_scaled(y + U(36), U(64), y)
        store(f, out + U(2048), U(64), 16, 2)
        store(fma_columns(f, v.load_f32(w), y), out + U(3072), U(64), rows, WIDTH)

    return kernel


def rows(kind):
    """-> kernel(src, stride, last, x, n, out): products of `RowWords.count` rows of n elements with n F32 at x,
    summed; then, from byte 64, 64 elements of row 0 times x[0] plus 64 of row 1 times x[1]."""
    w = v.RowWords(kind)
    multiply, multiply_part, zero, sums = w.multiply, w.multiply_part, w.zero, w.sums
    add_row, zero4, store4 = w.add_row, w.zero4, w.store4
    size = v.FLOAT_BYTES[kind]

    def kernel(src, stride, last, x, n, out):
        acc = zero()
        at, y = src, x
        for _ in range(n >> 4):
            acc = multiply(acc, at, U(stride), last, v.load_f32(y))
            at += U(16 * size)
            y += U(64)
        if n & 15:
            acc = multiply_part(acc, at, U(stride), last, v.load_f32_part(y, n & 15), n & 15)
        v.store(out, sums(acc))
        if n >= 64:
            second = add_row(zero4(), src + U(stride), v.f32_at(x + U(4)))
            store4(out + U(64), add_row(zero4(), src, v.f32_at(x)), second)

    return kernel
