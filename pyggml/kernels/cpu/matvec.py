"""Matrix-vector products: each row of weights, read once from the GGUF layout, with one or a few rows of activations.

Owns the dot product of one row; the loop over rows is one for all types. Knows matrix-matrix products no more than
their operands' shapes. One row is one stream of memory; 8 scales are converted at once; a prefetch runs 8 KiB ahead.
"""

from __future__ import annotations

from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cpu.formats import FORMATS, Form, functions
from pyggml.kernels.cpu.product_args import ProductArgs

AHEAD = 8192


def _row_dot_blocks(dtype):
    """-> dot(nb, pad, x, y): a row of `nb` blocks of 32 at x with the planes at y (activations.planes)."""
    from pyggml import simd as v

    U = v.U
    blocks = functions(dtype).vector()
    size = SIZES[dtype].type_size
    signed, has_min = blocks.signed, blocks.m is not None
    bias = v.constant("f32", [float(blocks.bias)] * 8)
    has_sum = has_min or blocks.bias != 0
    start_at_z = signed and v.SIGNED_BIAS != 0
    spread = [v.shuffler([2 * i] * 8 + [2 * i + 1] * 8) for i in range(4)]
    pair_at = [U(2 * size * i) for i in range(4)]

    def products(count):
        """-> f(x, q, z): i32 x 16 sums of four products of `count` blocks (2 or 1)."""
        quants = blocks.quants(count)

        @v.device
        def unsigned(x, q, z):
            return v.dot_u8i8(v.zero_i32(), quants(x), v.load_i8(q))

        @v.device
        def from_z(x, q, z):
            return v.dot_weights(v.load_i32(z), v.signed_weights(quants(x)), v.load_i8(q))

        @v.device
        def as_signed(x, q, z):
            return v.dot_weights(v.zero_i32(), v.signed_weights(quants(x)), v.load_i8(q))

        return (from_z if start_at_z else as_signed) if signed else unsigned

    def scales(count):
        """-> f(x, s, c): the scales of `count` blocks, and c + what minimum or bias add for them."""
        assert not has_min or blocks.m == blocks.d + 2
        d = v.f16_gather(count, size, 8)
        pairs = v.f16_gather_pairs(count, size)

        @v.device
        def minimum(x, s, c):
            both = pairs(x + d_at)
            return even(both), v.fma(odd(both), v.load_f32x8(s), c)

        @v.device
        def biased(x, s, c):
            w = d(x + d_at)
            return w, v.fma(w, v.load_f32x8(s), c)

        @v.device
        def nothing(x, s, c):
            return d(x + d_at), c

        return minimum if has_min else biased if has_sum else nothing

    d_at = U(blocks.d)
    even, odd = v.shuffler([*range(0, 16, 2)]), v.shuffler([*range(1, 16, 2)])
    pair, single = products(2), products(1)
    scales8, scales2, scales1 = scales(8), scales(2), scales(1)
    s0, s1, s2, s3 = spread
    x1, x2, x3 = pair_at[1:]
    group, pair_size = U(8 * size), U(2 * size)
    lines = -(-8 * size // 64)
    ahead = U(AHEAD)
    four_lines = lines > 3
    five_lines = lines > 4

    @v.device
    def dot(nb, pad, x, q):
        z = q + U(32 * pad)
        d = z + U(32 * pad)
        s = d + U(4 * pad)
        a0 = v.zero_f32()
        a1 = v.zero_f32()
        c = v.zero_f32x8()
        for _ in range(nb >> 3):
            v.prefetch(x + ahead)
            v.prefetch(x + ahead + U(64))
            v.prefetch(x + ahead + U(128))
            if four_lines:
                v.prefetch(x + ahead + U(192))
            if five_lines:
                v.prefetch(x + ahead + U(256))
            w, c = scales8(x, s, c)
            wd = w * v.load_f32x8(d)
            a0 = v.fma(s0(wd), v.to_f32(pair(x, q, z)), a0)
            a1 = v.fma(s1(wd), v.to_f32(pair(x + x1, q + U(64), z + U(64))), a1)
            a0 = v.fma(s2(wd), v.to_f32(pair(x + x2, q + U(128), z + U(128))), a0)
            a1 = v.fma(s3(wd), v.to_f32(pair(x + x3, q + U(192), z + U(192))), a1)
            x += group
            q += U(256)
            z += U(256)
            d += U(32)
            s += U(32)
        for _ in range((nb & 7) >> 1):
            w, c = scales2(x, s, c)
            a0 = v.fma(s0(w * v.load_f32x8(d)), v.to_f32(pair(x, q, z)), a0)
            x += pair_size
            q += U(64)
            z += U(64)
            d += U(8)
            s += U(8)
        if nb & 1:
            w, c = scales1(x, s, c)
            a0 = v.fma(s0(w * v.load_f32x8(d)), v.to_f32(single(x, q, z)), a0)
        total = a0 + a1
        if has_min:
            total += v.join(c, v.zero_f32x8())
        elif has_sum:
            total -= v.join(c * bias(), v.zero_f32x8())
        return v.hsum(total)

    return dot


def _row_dot_super_blocks(dtype):
    """-> dot(nb, pad, x, y): a row of `nb` blocks of 32, eight to a super-block, with the planes at y."""
    from pyggml import simd as v

    U = v.U
    blocks = functions(dtype).super_blocks()
    size = SIZES[dtype].type_size
    count = 256 // blocks.run
    get, has_min, wide = blocks.scales, blocks.has_min, blocks.run == 32
    bias = v.SIGNED_BIAS if blocks.signed else blocks.bias
    shift = v.constant("i32", [8 - bias.bit_length()] * 16)  # z is -128 x the sums

    def product(quants):
        """-> f(x, q, z): i32 x 16 sums of four products of 64 values."""

        @v.device
        def start(z):
            return v.load_i32(z) >> shift() if bias != 128 else v.load_i32(z)

        begin = start if bias else v.device(lambda z: v.zero_i32())

        @v.device
        def unsigned(x, q, z):
            return v.to_f32(v.dot_u8i8(begin(z), quants(x), v.load_i8(q)))

        @v.device
        def signed(x, q, z):
            return v.to_f32(v.dot_weights(begin(z), v.signed_weights(quants(x)), v.load_i8(q)))

        return signed if blocks.signed else unsigned

    p0, p1, p2, p3 = map(product, blocks.quants)
    a_run = blocks.run // 4  # lanes of sums that share a scale
    t0, t1, t2, t3 = (v.shuffler([(16 * i + j) // a_run for j in range(16)]) for i in range(4))
    each = v.shuffler([i * 8 // count for i in range(count)])
    back = v.constant("f32", [-1 / 128.0] * 16)

    @v.device
    def sums(z):
        return v.to_f32(v.load_i32(z)) * back()

    @v.device
    def plain(x, q, z, d, s, a0, a1, c):
        w = get(x) * each(v.load_f32x8(d))
        a0 = v.fma(t0(w), p0(x, q, z), a0)
        a1 = v.fma(t1(w), p1(x, q + U(64), z + U(64)), a1)
        a0 = v.fma(t2(w), p2(x, q + U(128), z + U(128)), a0)
        a1 = v.fma(t3(w), p3(x, q + U(192), z + U(192)), a1)
        return a0, a1, c

    @v.device
    def minimum_32(x, q, z, d, s, a0, a1, c):
        w, m = get(x)
        w = w * v.load_f32x8(d)
        a0 = v.fma(t0(w), p0(x, q, z), a0)
        a1 = v.fma(t1(w), p1(x, q + U(64), z + U(64)), a1)
        a0 = v.fma(t2(w), p2(x, q + U(128), z + U(128)), a0)
        a1 = v.fma(t3(w), p3(x, q + U(192), z + U(192)), a1)
        return a0, a1, v.fma(m, v.load_f32x8(s), c)

    @v.device
    def minimum_16(x, q, z, d, s, a0, a1, c):
        w, m = get(x)
        by = each(v.load_f32x8(d))
        w, m = w * by, m * by
        a0 = v.fma(t0(w), p0(x, q, z), a0)
        a1 = v.fma(t1(w), p1(x, q + U(64), z + U(64)), a1)
        a0 = v.fma(t2(w), p2(x, q + U(128), z + U(128)), a0)
        a1 = v.fma(t3(w), p3(x, q + U(192), z + U(192)), a1)
        a0 = v.fma(t0(m), sums(z), a0)
        a1 = v.fma(t1(m), sums(z + U(64)), a1)
        a0 = v.fma(t2(m), sums(z + U(128)), a0)
        a1 = v.fma(t3(m), sums(z + U(192)), a1)
        return a0, a1, c

    one = (minimum_32 if wide else minimum_16) if has_min else plain
    lines, ahead = -(-size // 64), U(AHEAD)

    @v.device
    def dot(nb, pad, x, q):
        z = q + U(32 * pad)
        d = z + U(32 * pad)
        s = d + U(4 * pad)
        a0 = v.zero_f32()
        a1 = v.zero_f32()
        c = v.zero_f32x8()
        for _ in range(nb >> 3):
            for i in range(lines):
                v.prefetch(x + ahead + U(64 * i))
            a0, a1, c = one(x, q, z, d, s, a0, a1, c)
            x += U(size)
            q += U(256)
            z += U(256)
            d += U(32)
            s += U(32)
        return v.hsum(a0 + a1 + v.join(c, v.zero_f32x8()))

    return dot


def _row_dot_floats(dtype):
    """-> dot(n, unused, x, y): a row of n floats at x with n F32 at y."""
    from pyggml import simd as v

    U = v.U
    load, load_part = v.float_loader(dtype.name)
    size = SIZES[dtype].type_size
    x1, x2, x3, group = U(16 * size), U(32 * size), U(48 * size), U(64 * size)
    ahead = U(AHEAD)
    line2, line3 = size > 1, size > 2

    @v.device
    def dot(n, pad, x, y):
        a0 = v.zero_f32()
        a1 = v.zero_f32()
        a2 = v.zero_f32()
        a3 = v.zero_f32()
        for _ in range(n >> 6):
            v.prefetch(x + ahead)
            if line2:
                v.prefetch(x + ahead + U(64))
            if line3:
                v.prefetch(x + ahead + U(128))
                v.prefetch(x + ahead + U(192))
            a0 = v.fma(load(x), v.load_f32(y), a0)
            a1 = v.fma(load(x + x1), v.load_f32(y + U(64)), a1)
            a2 = v.fma(load(x + x2), v.load_f32(y + U(128)), a2)
            a3 = v.fma(load(x + x3), v.load_f32(y + U(192)), a3)
            x += group
            y += U(256)
        for _ in range((n & 63) >> 4):
            a0 = v.fma(load(x), v.load_f32(y), a0)
            x += x1
            y += U(64)
        if n & 15:
            a1 = v.fma(load_part(x, n & 15), v.load_f32_part(y, n & 15), a1)
        return v.hsum((a0 + a1) + (a2 + a3))

    return dot


def rows(name):
    """-> kernel: dst (n, m, batch) = src0 (k, n, batch or a divisor of it) . activations, for few columns m.

    Block types read planes in scratch; float types read src1. Takes ProductArgs.
    The threads share the rows of each matrix; every column of a row is computed while the row is in cache.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    dtype = GGMLType[name]
    is_block = SIZES[dtype].block_size > 1
    forms = {Form.FLOATS: _row_dot_floats, Form.BLOCKS_32: _row_dot_blocks, Form.SUPER_BLOCKS: _row_dot_super_blocks}
    dot = forms[FORMATS[dtype].form](dtype)
    ne0, n1 = record.field("src0.ne"), record.field("src0.ne", 1)
    r2, r3 = record.field("src0.ne", 2), record.field("src0.ne", 3)
    m1, m2, m3 = (record.field("dst.ne", i) for i in (1, 2, 3))
    weights, output, plain = record.element("src0"), record.element("dst"), record.element("src1")
    row_bytes, row_out = record.field("src0.nb", 1), record.field("dst.nb", 1)
    row_plain = record.field("src1.nb", 1)
    planes_at, aborted = record.field("scratch"), record.aborted()
    args = step_args.readers(ProductArgs)
    blocks, padded, plane_bytes = args.length, args.padded, args.column_bytes

    def kernel(step, ith, nth, thread):
        length = blocks(step) if is_block else ne0(step)
        pad = padded(step)
        columns = m1(step)
        first, last = n1(step) * ith // nth, n1(step) * (ith + 1) // nth
        for matrix in range(m2(step) * m3(step)):
            if aborted(step):
                return
            i2, i3 = matrix % m2(step), matrix // m2(step)
            x = weights(step, 0, first, i2 // (m2(step) // r2(step)), i3 // (m3(step) // r3(step)))
            out = output(step, first, 0, i2, i3)
            if is_block:
                y0 = planes_at(step) + U(matrix * columns * plane_bytes(step))
                y_step = U(plane_bytes(step))
            else:
                y0 = plain(step, 0, 0, i2, i3)
                y_step = U(row_plain(step))
            for _ in range(first, last):
                y = y0
                o = out
                for _ in range(columns):
                    v.put_f32(o, dot(length, pad, x, y))
                    y += y_step
                    o += U(row_out(step))
                x += U(row_bytes(step))
                out += U(4)

    return kernel
