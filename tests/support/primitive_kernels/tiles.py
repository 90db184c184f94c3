"""Words on 16 rows at once."""

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


NIBBLES, BITS, BYTES, LEVELS = 4, 2, 22, (*range(-8, 0), *range(40, 48))
HALVES_AT = (0, 2, 10, 16, 52)
"""Offsets of what `of_16_rows` reads; the last two bytes of a row are among them."""


def of_16_rows():
    """-> kernel(src, stride, out): columns of 16 rows: 8 of nibbles, 8 of nibbles in LEVELS, 8 of nibbles with fifth bits,
    8 of bytes, those in the form for products; then one of halves for each of HALVES_AT, and one of exponents at BYTES."""
    low, levels = v.columns_of_nibbles(NIBBLES), v.columns_of_nibbles(NIBBLES, LEVELS)
    five, whole = v.columns_of_nibbles(NIBBLES, fifth=BITS), v.columns_of_bytes(BYTES)
    h0, h1, h2, h3, h4 = map(v.halves_at, HALVES_AT)
    exponents = v.exponents_at(BYTES)

    def kernel(src, stride, out):
        apart = U(stride)
        v.put_columns(out, low(src, apart))
        v.put_columns(out + U(512), levels(src, apart))
        v.put_columns(out + U(1024), five(src, apart))
        v.put_columns(out + U(1536), whole(src, apart))
        v.put_columns(out + U(2048), v.signed_columns(whole(src, apart)))
        v.store(out + U(2560), h0(src, apart))
        v.store(out + U(2624), h1(src, apart))
        v.store(out + U(2688), h2(src, apart))
        v.store(out + U(2752), h3(src, apart))
        v.store(out + U(2816), h4(src, apart))
        v.store(out + U(2880), exponents(src, apart))

    return kernel


PARTS = ([(0, 1, 4, 15, 0)], [(0, 3, 0, 3, 2), (22, 2, 7, 1, 0)])
NUMBERS = [([(0, 0, 8, 63, 0)], 0), ([(0, 2, 16, 255, 0)], 1), ([(0, 3, 20, 15, 0), (22, 0, 6, 3, 4)], 1)]
HALVES = [(22, 1, 0, 1.0), (22, 1, 16, -1.0)]


def parts_of_16_rows():
    """-> kernel(src, stride, out): the columns PARTS, the first of them in LEVELS and then in the form for products; the
    numbers NUMBERS with bit 7 changed, minus 128, times HALVES."""
    whole, levels = v.put_columns_of(PARTS), v.put_columns_of(PARTS[:1], LEVELS)
    form, products = v.put_columns_of(PARTS[:1], LEVELS, True), v.put_products_of(NUMBERS, HALVES, 128, 128)

    def kernel(src, stride, out):
        apart = U(stride)
        whole(out, src, apart)
        levels(out + U(128), src, apart)
        form(out + U(192), src, apart)
        products(out + U(256), src, apart)

    return kernel


def first_of_a_panel():
    """-> kernel(w, q5, y, out): the first two columns of panels of WIDTH, as integers and times w; y as for `columns`."""
    t = v.TileOps(2, WIDTH)
    zero, start, dot4, scale_add, fma_columns, store = (
        t.zero, t.start, t.dot4_u5i8, t.scale_add, t.fma_columns, t.store_columns,
    )  # fmt: skip
    one = v.constant("f32", [1.0] * 16)

    def kernel(w, q5, y, out):
        v.store(out + U(1024), one())
        store(scale_add(zero(), dot4(start(y + U(12), 7), q5, y + U(24)), one(), out + U(1024)), out, U(64), 16, 2)
        store(fma_columns(zero(), v.load_f32(w), y), out + U(128), U(64), 16, 2)

    return kernel


def columns():
    """-> kernel(w, q5, q6, q8, y, rows, out): results of WIDTH columns, six times, 1 KiB apart: integers from weights
    of 5 and of 6 bits and from signed ones (u8 or i8[4][16][4]), then floats, then integers from weights of 7 bits at
    q6 + 256.
    y: f32[3] scales, i32[3] starts, i8[4][3][4], f32[3][16]; out: columns 64 bytes apart."""
    t = v.TileOps(WIDTH)
    zero, start, start_zero, dot4_u5, dot4_u6, dot4_weights = (
        t.zero,
        t.start,
        t.start_zero,
        t.dot4_u5i8,
        t.dot4_u6i8,
        t.dot4_weights,
    )
    dot4_u7 = t.dot4_u7i8
    scale_add, fma_columns, load_scaled, store = t.scale_add, t.fma_columns, t.load_scaled, t.store_columns
    one = v.constant("f32", [1.0] * 16)

    def kernel(w, q5, q6, q8, y, rows, out):
        v.store(out + U(8192), one())
        n = dot4_u5(start(y + U(12), 7), q5, y + U(24))
        store(scale_add(zero(), n, one(), out + U(8192)), out, U(64), 16, WIDTH)
        n = dot4_u6(start_zero(), q6, y + U(24))
        store(scale_add(zero(), n, one(), out + U(8192)), out + U(1024), U(64), 16, WIDTH)
        for i in range(4):
            v.store(q8 + U(64 * i), v.signed_weights(v.load_i8(q8 + U(64 * i))))
        n = dot4_weights(start_zero(), q8, y + U(24))
        store(scale_add(zero(), n, v.load_f32(w), y), out + U(2048), U(64), 16, WIDTH)
        f = load_scaled(y + U(72), U(64), y)
        store(f, out + U(3072), U(64), 16, 2)
        store(fma_columns(f, v.load_f32(w), y), out + U(4096), U(64), rows, WIDTH)
        n = dot4_u7(start_zero(), q6 + U(256), y + U(24))
        store(scale_add(zero(), n, one(), out + U(8192)), out + U(5120), U(64), 16, WIDTH)

    return kernel


def groups(columns, rows):
    """-> kernel(x, y, numbers, apart, out): f32[2][16] at x with each column's f32[2][16] at y, `apart` bytes from one
    column's to the next's: totals for the first and the last row, 64 bytes a column. From byte 1024 on, 1 KiB a column:
    x times the column's number, twice for the first row, and again for the last one where the number is not 0."""
    w = v.ColumnOps(columns, rows)
    zero, put_totals, put = w.zero, w.put_totals, w.put
    first, last = w.fma_vectors[0], w.fma_vectors[-1]
    number, seen = w.fma_numbers[0], w.fma_numbers_seen[-1]

    def kernel(x, y, numbers, apart, out):
        acc = first(zero(), v.load_f32(x), y, U(apart))
        put_totals(out, last(acc, v.load_f32(x + U(64)), y + U(64), U(apart)), U(64))
        acc = number(zero(), v.load_f32(x), numbers, U(4))
        put(
            out + U(1024),
            seen(number(acc, v.load_f32(x), numbers, U(4)), v.load_f32(x + U(64)), numbers, U(4)),
            U(1024),
            rows,
        )
        put(out + U(1024 * (1 + columns)), zero(), U(64), 0)

    return kernel
