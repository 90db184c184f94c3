"""Words on integer lanes: arithmetic, widths, shuffles, dot products, blocks' pieces."""

from pyggml import simd as v

U = v.U
np = v.np
REVERSED = [*range(15, -1, -1)]
NIBBLES, NIBBLES_ONE = [3, 23], [3]
BITS, BITS_ONE = [1, 9], [5]
BYTES, BYTES_ONE = [2, 36], [2]
LEVELS = [-128, 127, 0, -1, 5, 90, -90, 17, 1, 2, 3, 44, 100, -100, 60, 61]
RUNS_OF_8 = np.random.default_rng(8).integers(0, 256, (200, 8), np.uint8)
RUNS_OF_4 = np.random.default_rng(4).integers(0, 256, (200, 4), np.uint8)


def arithmetic():
    """-> kernel(x, y, shift, n, out): INTEGERS of tests/simd/test_integers.py on i32, with shifts from `shift`."""
    turned = v.shuffler(REVERSED)
    few = v.shuffler([0, 5, 5, 12])

    def kernel(x, y, shift, n, out):
        row = U(4 * n)
        for i in range(0, n, 16):
            o = out + U(4 * i)
            a, b, s = v.load_i32(x + U(4 * i)), v.load_i32(y + U(4 * i)), v.load_i32(shift + U(4 * i))
            v.store(o, a + b)
            v.store(o + row, a - b)
            v.store(o + U(2) * row, a * b)
            v.store(o + U(3) * row, a & b)
            v.store(o + U(4) * row, a | b)
            v.store(o + U(5) * row, a ^ b)
            v.store(o + U(6) * row, a << s)
            v.store(o + U(7) * row, a >> s)
            v.store(o + U(8) * row, turned(a))
            v.store(o + U(9) * row, v.to_f32(a))
            v.store(o + U(10) * row, v.widen(v.low_u8(a)))
            v.store(o + U(11) * row, v.widen(v.i32_to_i8(a)))
            v.store(o + U(12) * row, v.widen(v.as_i8(v.low_u8(a))))
            v.store(o + U(13) * row, v.splat_i32(v.hsum(a)))
            v.store(o + U(14) * row, few(v.join(a, b)))

    return kernel


def bytes_shifted():
    """-> kernel(x, shift, out): 64 u8 lanes shifted right, left, in place of one another."""

    def kernel(x, shift, out):
        a, s = v.load_u8(x), v.load_u8(shift)
        v.store(out, a >> s)
        v.store(out + U(64), a << s)
        v.store(out + U(128), v.load_i8(x) >> v.load_i8(shift))

    return kernel


def single_bits():
    """-> kernel(x, n, out): lowest and highest bit of 64-bit words."""

    def kernel(x, n, out):
        for i in range(n):
            v.put_i64(out + U(16 * i), v.lowest_bit(v.i64_at(x + U(8 * i))))
            v.put_i64(out + U(16 * i + 8), v.highest_bit(v.i64_at(x + U(8 * i))))

    return kernel


def dots():
    """-> kernel(acc, w, s, n, out): for each 64 bytes of w and s: u8 x i8, then i8 x i8 without the bias taken away."""

    def kernel(acc, w, s, n, out):
        start = v.load_i32(acc)
        for i in range(n):
            at = U(64 * i)
            v.store(out + at, v.dot_u8i8(start, v.load_u8(w + at), v.load_i8(s + at)))
            v.store(out + U(64 * n) + at, v.dot_weights(start, v.signed_weights(v.load_i8(w + at)), v.load_i8(s + at)))

    return kernel


def pieces():
    """-> kernel(block, out): nibbles, bits and bytes of two blocks and of one."""
    nibbles2, nibbles1 = v.nibbles(NIBBLES), v.nibbles(NIBBLES_ONE)
    bits2, bits1 = v.bits(BITS, 16), v.bits(BITS_ONE, 255)
    bytes2, bytes1 = v.bytes_at(BYTES), v.bytes_at(BYTES_ONE)

    def kernel(block, out):
        v.store(out, nibbles2(block))
        v.store(out + U(64), nibbles1(block))
        v.store(out + U(128), bits2(block))
        v.store(out + U(192), bits1(block))
        v.store(out + U(256), bytes2(block))
        v.store(out + U(320), bytes1(block))

    return kernel


def tables():
    """-> kernel(x, out): LEVELS at 64 lanes, at 32, at 16; then bytes moved as words of 32 bits."""
    level, three = v.table(LEVELS), v.constant("u32", [3] * 16)
    load_32, load_16 = v.loader("u8", 32), v.loader("u8", 16)

    def kernel(x, out):
        v.store(out, level(v.load_u8(x)))
        v.store(out + U(64), level(load_32(x)))
        v.store(out + U(96), level(load_16(x)))
        v.store(out + U(112), v.as_bytes(v.as_words(v.load_u8(x)) << three()))

    return kernel


def grids():
    """-> kernel(x, bits, out): runs of RUNS_OF_8 by the first eight i32 at x, of RUNS_OF_4 by all sixteen; then the 64
    bytes at `bits` + 8, some of them negated by the eight before."""
    eights, fours, first = v.grid(RUNS_OF_8), v.grid(RUNS_OF_4), v.shuffler([*range(8)])
    load_8 = v.loader("u8", 8)

    def kernel(x, bits, out):
        v.store(out, eights(first(v.load_i32(x))))
        v.store(out + U(64), fours(v.load_i32(x)))
        v.store(out + U(128), v.negate_where(v.load_u8(bits + U(8)), load_8(bits)))

    return kernel


def constants():
    """-> kernel(x, out): what is made of nothing, or of one scalar at x."""
    numbers, zeros = v.constant("i32", range(16)), v.zeros("u8", 64)
    splat_u8, splat_f32 = v.splat_like("u8", 64), v.splat_like("f32", 8)

    def kernel(x, out):
        v.store(out, numbers())
        v.store(out + U(64), zeros())
        v.store(out + U(128), splat_u8(300))
        v.store(out + U(192), splat_f32(v.f32_at(x)))
        v.store(out + U(224), v.zero_f32x8())
        v.store(out + U(256), v.broadcast_f32(x))
        v.store(out + U(320), v.broadcast_i32(x))
        v.store(out + U(384), v.broadcast_4i8(x))
        v.store(out + U(448), v.splat_f32(v.f32_at(x)))
        v.store(out + U(512), v.zero_f32())
        v.store(out + U(576), v.zero_i32())

    return kernel
