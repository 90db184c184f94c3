"""Dot products of one row of weights, as it lies in the file, with one or several columns of activations.

Owns in which order a row is summed, for each form of types. Several columns share what is unpacked, and each is summed as it is
alone. 8 scales are converted at once; a prefetch into the second cache runs 3 KiB ahead.
"""

from __future__ import annotations

from pyggml.dtypes import SIZES
from pyggml.kernels.cpu.formats import FORMATS, Form, functions

AHEAD = 3072


def row_dots(dtype, count):
    """-> dots(n, pad, x, y, apart, out, out_apart): a row at x times `count` columns, the first at y, `apart` bytes from one to
    the next; the results at `out`, `out_apart` bytes from one to the next.

    Of block types n counts blocks of 32, and a column is planes of `pad` blocks (activations.planes); of floats elements.
    """
    forms = {Form.FLOATS: _floats, Form.BLOCKS_32: _blocks, Form.SUPER_BLOCKS: _super_blocks}
    return forms[FORMATS[dtype].form](dtype, count)


def _planes_on(at, apart):
    q, z, d, s = at
    return q + apart, z + apart, d + apart, s + apart


def _floats_on(y, apart):
    return y + apart


def _of_columns(count, start, steps, end, move):
    """What a row's product with one column is made of, for `count` columns at once: weights are unpacked once, and each column
    is summed as it is alone.

    start() -> sums; of each step (unpack(x) -> weights, add(sums, weights, at) -> sums), with the activations `at`;
    end(sums) -> f32; move(at, apart) -> the next column's `at`.
    -> starts() -> all sums, (first, all others), then for each step step(all sums, apart, x, at) -> all sums, and
    ends(all sums, out, out_apart), which stores them.
    """
    from pyggml import simd as v

    def of(count):
        """-> starts, adds(all sums, apart, weights, at) of each step, ends"""
        if count == 1:

            def alone(add):
                return v.device(lambda sums, apart, weights, at: add(sums, weights, at))

            @v.device
            def store(sums, out, out_apart):
                v.put_f32(out, end(sums))

            return start, *(alone(add) for _, add in steps), store

        others, *rest, others_end = of(count - 1)

        @v.device
        def starts():
            return start(), others()

        def all_of(add, rest):
            @v.device
            def adds(sums, apart, weights, at):
                first, others = sums
                return add(first, weights, at), rest(others, apart, weights, move(at, apart))

            return adds

        @v.device
        def ends(sums, out, out_apart):
            first, others = sums
            v.put_f32(out, end(first))
            others_end(others, out + out_apart, out_apart)

        return starts, *(all_of(add, others) for (_, add), others in zip(steps, rest, strict=True)), ends

    def whole(unpack, adds):
        return v.device(lambda sums, apart, x, at: adds(sums, apart, unpack(x), at))

    starts, *adds, ends = of(count)
    return starts, *(whole(unpack, add) for (unpack, _), add in zip(steps, adds, strict=True)), ends


def _blocks(dtype, count):
    """-> dots(nb, pad, x, y, apart, out, out_apart): a row of `nb` blocks of 32 at x with the planes at y (activations.planes)
    of each of `count` columns."""
    from pyggml import simd as v

    U = v.U
    blocks = functions(dtype).vector()
    size = SIZES[dtype].type_size
    signed, has_min = blocks.signed, blocks.m is not None
    bias = v.constant("f32", [float(blocks.bias)] * 8)
    has_sum = has_min or blocks.bias != 0
    start_at_z = signed and v.SIGNED_BIAS != 0
    s0, s1, s2, s3 = (v.shuffler([2 * i] * 8 + [2 * i + 1] * 8) for i in range(4))
    x1, x2, x3 = (U(2 * size * i) for i in (1, 2, 3))
    d_at = U(blocks.d)
    even, odd = v.shuffler([*range(0, 16, 2)]), v.shuffler([*range(1, 16, 2)])

    def quants(count):
        """-> f(x): the weights of `count` blocks (2 or 1) as `product` takes them."""
        plain = blocks.quants(count)
        return v.device(lambda x: v.signed_weights(plain(x))) if signed else plain

    @v.device
    def unsigned(w, q, z):
        return v.to_f32(v.dot_u8i8(v.zero_i32(), w, v.load_i8(q)))

    @v.device
    def from_z(w, q, z):
        return v.to_f32(v.dot_weights(v.load_i32(z), w, v.load_i8(q)))

    @v.device
    def as_signed(w, q, z):
        return v.to_f32(v.dot_weights(v.zero_i32(), w, v.load_i8(q)))

    product = (from_z if start_at_z else as_signed) if signed else unsigned

    def scales(count):
        """-> f(x): the scales of `count` blocks and their minimums, or the scales again."""
        assert not has_min or blocks.m == blocks.d + 2
        d = v.e8m0_gather(count, size, 8) if blocks.exponent else v.f16_gather(count, size, 8)
        pairs = v.f16_gather_pairs(count, size)

        @v.device
        def with_minimums(x):
            both = pairs(x + d_at)
            return even(both), odd(both)

        @v.device
        def twice(x):
            w = d(x + d_at)
            return w, w

        return with_minimums if has_min else twice

    pair, single = quants(2), quants(1)
    scales8, scales2, scales1 = scales(8), scales(2), scales(1)

    @v.device
    def start():
        return v.zero_f32(), v.zero_f32(), v.zero_f32x8()

    @v.device
    def unpack8(x):
        return scales8(x), (pair(x), pair(x + x1), pair(x + x2), pair(x + x3))

    @v.device
    def add8(sums, weights, at):
        a0, a1, c = sums
        q, z, d, s = at
        (w, m), (w0, w1, w2, w3) = weights
        if has_sum:
            c = v.fma(m, v.load_f32x8(s), c)
        wd = w * v.load_f32x8(d)
        a0 = v.fma(s0(wd), product(w0, q, z), a0)
        a1 = v.fma(s1(wd), product(w1, q + U(64), z + U(64)), a1)
        a0 = v.fma(s2(wd), product(w2, q + U(128), z + U(128)), a0)
        a1 = v.fma(s3(wd), product(w3, q + U(192), z + U(192)), a1)
        return a0, a1, c

    @v.device
    def unpack2(x):
        return scales2(x), pair(x)

    @v.device
    def unpack1(x):
        return scales1(x), single(x)

    @v.device
    def add(sums, weights, at):
        a0, a1, c = sums
        q, z, d, s = at
        (w, m), w0 = weights
        if has_sum:
            c = v.fma(m, v.load_f32x8(s), c)
        return v.fma(s0(w * v.load_f32x8(d)), product(w0, q, z), a0), a1, c

    @v.device
    def end(sums):
        a0, a1, c = sums
        total = a0 + a1
        if has_min:
            total += v.join(c, v.zero_f32x8())
        elif has_sum:
            total -= v.join(c * bias(), v.zero_f32x8())
        return v.hsum(total)

    steps = ((unpack8, add8), (unpack2, add), (unpack1, add))
    starts, eights, twos, ones, ends = _of_columns(count, start, steps, end, v.device(_planes_on))
    group, pair_size, ahead = U(8 * size), U(2 * size), U(AHEAD)
    lines = -(-8 * size // 64)
    four_lines, five_lines = lines > 3, lines > 4

    @v.device
    def dots(nb, pad, x, q, apart, out, out_apart):
        z = q + U(32 * pad)
        d = z + U(32 * pad)
        s = d + U(4 * pad)
        sums = starts()
        for _ in range(nb >> 3):
            v.prefetch_l2(x + ahead)
            v.prefetch_l2(x + ahead + U(64))
            v.prefetch_l2(x + ahead + U(128))
            if four_lines:
                v.prefetch_l2(x + ahead + U(192))
            if five_lines:
                v.prefetch_l2(x + ahead + U(256))
            sums = eights(sums, apart, x, (q, z, d, s))
            x += group
            q += U(256)
            z += U(256)
            d += U(32)
            s += U(32)
        for _ in range((nb & 7) >> 1):
            sums = twos(sums, apart, x, (q, z, d, s))
            x += pair_size
            q += U(64)
            z += U(64)
            d += U(8)
            s += U(8)
        if nb & 1:
            sums = ones(sums, apart, x, (q, z, d, s))
        ends(sums, out, out_apart)

    return dots


def _super_blocks(dtype, count):
    """-> dots(nb, pad, x, y, apart, out, out_apart): a row of `nb` blocks of 32, eight to a super-block, with the planes at y of
    each of `count` columns."""
    from pyggml import simd as v

    U = v.U
    blocks = functions(dtype).super_blocks()
    size = SIZES[dtype].type_size
    n_scales = 256 // blocks.run
    get, has_min, wide = blocks.scales, blocks.has_min, blocks.run == 32
    bias = v.SIGNED_BIAS if blocks.signed else blocks.bias
    shift = v.constant("i32", [8 - bias.bit_length()] * 16)  # z is -128 x the sums

    @v.device
    def start_at(z):
        return v.load_i32(z) >> shift() if bias != 128 else v.load_i32(z)

    begin = start_at if bias else v.device(lambda z: v.zero_i32())

    @v.device
    def unsigned(w, q, z):
        return v.to_f32(v.dot_u8i8(begin(z), w, v.load_i8(q)))

    @v.device
    def signed(w, q, z):
        return v.to_f32(v.dot_weights(begin(z), w, v.load_i8(q)))

    product = signed if blocks.signed else unsigned
    form = v.signed_weights if blocks.signed else v.device(lambda w: w)
    p0, p1, p2, p3 = blocks.quants
    a_run = blocks.run // 4  # lanes of sums that share a scale
    t0, t1, t2, t3 = (v.shuffler([(16 * i + j) // a_run for j in range(16)]) for i in range(4))
    each = v.shuffler([i * 8 // n_scales for i in range(n_scales)])
    back = v.constant("f32", [-1 / 128.0] * 16)

    @v.device
    def z_sums(z):
        return v.to_f32(v.load_i32(z)) * back()

    @v.device
    def unpack(x):
        return get(x), (form(p0(x)), form(p1(x)), form(p2(x)), form(p3(x)))

    @v.device
    def plain(sums, weights, at):
        a0, a1, c = sums
        q, z, d, _ = at
        w, (w0, w1, w2, w3) = weights
        w = w * each(v.load_f32x8(d))
        a0 = v.fma(t0(w), product(w0, q, z), a0)
        a1 = v.fma(t1(w), product(w1, q + U(64), z + U(64)), a1)
        a0 = v.fma(t2(w), product(w2, q + U(128), z + U(128)), a0)
        a1 = v.fma(t3(w), product(w3, q + U(192), z + U(192)), a1)
        return a0, a1, c

    @v.device
    def minimum_32(sums, weights, at):
        a0, a1, c = sums
        q, z, d, s = at
        (w, m), (w0, w1, w2, w3) = weights
        w = w * v.load_f32x8(d)
        a0 = v.fma(t0(w), product(w0, q, z), a0)
        a1 = v.fma(t1(w), product(w1, q + U(64), z + U(64)), a1)
        a0 = v.fma(t2(w), product(w2, q + U(128), z + U(128)), a0)
        a1 = v.fma(t3(w), product(w3, q + U(192), z + U(192)), a1)
        return a0, a1, v.fma(m, v.load_f32x8(s), c)

    @v.device
    def minimum_16(sums, weights, at):
        a0, a1, c = sums
        q, z, d, _ = at
        (w, m), (w0, w1, w2, w3) = weights
        by = each(v.load_f32x8(d))
        w, m = w * by, m * by
        a0 = v.fma(t0(w), product(w0, q, z), a0)
        a1 = v.fma(t1(w), product(w1, q + U(64), z + U(64)), a1)
        a0 = v.fma(t2(w), product(w2, q + U(128), z + U(128)), a0)
        a1 = v.fma(t3(w), product(w3, q + U(192), z + U(192)), a1)
        a0 = v.fma(t0(m), z_sums(z), a0)
        a1 = v.fma(t1(m), z_sums(z + U(64)), a1)
        a0 = v.fma(t2(m), z_sums(z + U(128)), a0)
        a1 = v.fma(t3(m), z_sums(z + U(192)), a1)
        return a0, a1, c

    add = (minimum_32 if wide else minimum_16) if has_min else plain
    lines, ahead = -(-size // 64), U(AHEAD)

    @v.device
    def start():
        return v.zero_f32(), v.zero_f32(), v.zero_f32x8()

    @v.device
    def end(sums):
        a0, a1, c = sums
        return v.hsum(a0 + a1 + v.join(c, v.zero_f32x8()))

    starts, ones, ends = _of_columns(count, start, ((unpack, add),), end, v.device(_planes_on))

    @v.device
    def dots(nb, pad, x, q, apart, out, out_apart):
        z = q + U(32 * pad)
        d = z + U(32 * pad)
        s = d + U(4 * pad)
        sums = starts()
        for _ in range(nb >> 3):
            for i in range(lines):
                v.prefetch_l2(x + ahead + U(64 * i))
            sums = ones(sums, apart, x, (q, z, d, s))
            x += U(size)
            q += U(256)
            z += U(256)
            d += U(32)
            s += U(32)
        ends(sums, out, out_apart)

    return dots


def _floats(dtype, count):
    """-> dots(n, unused, x, y, apart, out, out_apart): a row of n floats at x with n F32 at y of each of `count` columns."""
    from pyggml import simd as v

    U = v.U
    load, load_part = v.float_loader(dtype.name)
    size = SIZES[dtype].type_size
    x1, x2, x3, group = U(16 * size), U(32 * size), U(48 * size), U(64 * size)
    ahead = U(AHEAD)
    line2, line3 = size > 1, size > 2

    @v.device
    def start():
        return v.zero_f32(), v.zero_f32(), v.zero_f32(), v.zero_f32()

    @v.device
    def unpack64(x):
        return load(x), load(x + x1), load(x + x2), load(x + x3)

    @v.device
    def add64(sums, weights, y):
        a0, a1, a2, a3 = sums
        w0, w1, w2, w3 = weights
        a0 = v.fma(w0, v.load_f32(y), a0)
        a1 = v.fma(w1, v.load_f32(y + U(64)), a1)
        a2 = v.fma(w2, v.load_f32(y + U(128)), a2)
        a3 = v.fma(w3, v.load_f32(y + U(192)), a3)
        return a0, a1, a2, a3

    @v.device
    def add16(sums, weights, y):
        a0, a1, a2, a3 = sums
        return v.fma(weights, v.load_f32(y), a0), a1, a2, a3

    @v.device
    def unpack_part(x):
        at, n = x
        return load_part(at, n), n

    @v.device
    def add_part(sums, weights, y):
        a0, a1, a2, a3 = sums
        w, n = weights
        return a0, v.fma(w, v.load_f32_part(y, n), a1), a2, a3

    @v.device
    def end(sums):
        a0, a1, a2, a3 = sums
        return v.hsum((a0 + a1) + (a2 + a3))

    steps = ((unpack64, add64), (load, add16), (unpack_part, add_part))
    starts, sixty_fours, sixteens, rest, ends = _of_columns(count, start, steps, end, v.device(_floats_on))

    @v.device
    def dots(n, pad, x, y, apart, out, out_apart):
        sums = starts()
        for _ in range(n >> 6):
            v.prefetch_l2(x + ahead)
            if line2:
                v.prefetch_l2(x + ahead + U(64))
            if line3:
                v.prefetch_l2(x + ahead + U(128))
                v.prefetch_l2(x + ahead + U(192))
            sums = sixty_fours(sums, apart, x, y)
            x += group
            y += U(256)
        for _ in range((n & 63) >> 4):
            sums = sixteens(sums, apart, x, y)
            x += x1
            y += U(64)
        if n & 15:
            sums = rest(sums, apart, (x, n & 15), y)
        ends(sums, out, out_apart)

    return dots
