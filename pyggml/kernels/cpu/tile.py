"""Matrix-matrix products: 16 rows of weights are unpacked into scratch, then met with `width` tokens at a time in
registers.

Owns the unpacked panel of weights and the tile; knows the activations' panels from activations.py.
Panel of 16 rows of a block type, for each block of 32: q u8[8][16][4] in one run, behind all of them d f32[16] (and
m f32[16]) a block; where scales change every 16 values, both for each half of a block. Of a float type: f32[k][16].
"""

from __future__ import annotations

from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cpu.activations import PANEL_BYTES
from pyggml.quants import quant

ROWS = 16
STAGE = 384  # bytes of a row of 256 values on their way into the panel


def panel_bytes(dtype: GGMLType, k: int) -> int:
    """Scratch of one thread for 16 unpacked rows."""
    if SIZES[dtype].block_size == 1:
        return (k + 16) * 64
    nb = k // 32
    if SIZES[dtype].block_size == 256:
        return nb * 768 + 16 * STAGE
    return (nb + 1) * 512 + nb * 128


def _unpack_blocks(dtype):
    """-> unpack(x, stride, last, nb, panel): rows 0 to `last` (at most 15) of nb blocks; further rows repeat the last."""
    from pyggml import simd as v

    U = v.U
    make = quant(dtype).vector
    assert make is not None
    blocks = make()
    size = U(SIZES[dtype].type_size)
    two, one = blocks.quants(2), blocks.quants(1)
    signed, has_min = blocks.signed, blocks.m is not None

    @v.device
    def shifted2(x):
        return v.signed_weights(two(x))

    @v.device
    def shifted1(x):
        return v.signed_weights(one(x))

    pair = v.transposer(shifted2 if signed else two)
    single = v.transposer(shifted1 if signed else one, 8)
    d_at, m_at = U(blocks.d), U(blocks.m or 0)

    @v.device
    def unpack(x, stride, last, nb, panel):
        q = panel
        d = panel + U(512 * nb)
        y = x
        for _ in range(nb >> 1):
            pair(q, y, stride, last)
            q += U(1024)
            y += size * U(2)
        if nb & 1:
            single(q, y, stride, last)
        for _ in range(nb):
            v.store(d, v.f16_column(x + d_at, stride, last))
            d += U(64)
            if has_min:
                v.store(d, v.f16_column(x + m_at, stride, last))
                d += U(64)
            x += size

    return unpack


def _unpack_super_blocks(dtype):
    """-> unpack(x, stride, last, nb, panel): the same of nb / 8 super-blocks. Behind the panel each row's values and
    scales are put down first, so that one transposition does for all types and parts."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import super_blocks

    U = v.U
    blocks = super_blocks.TYPES[dtype.name]()
    size, get, signed = SIZES[dtype].type_size, blocks.scales, blocks.signed
    q0, q1, q2, q3 = blocks.quants
    count = 256 // blocks.run * (2 if blocks.has_min else 1)  # scales, each with its minimum behind it
    parts = 6 if count == 32 else 5

    def turns(first):
        """Eight scales and their minimums by turns."""
        return v.shuffler([first + i // 2 + i % 2 * (count // 2) for i in range(16)])

    early, late = turns(0), turns(8) if count == 32 else None

    @v.device
    def sixteen(x, at):
        v.store(at, get(x))

    @v.device
    def eight(x, at):
        v.store(at, v.join(get(x), v.zero_f32x8()))

    @v.device
    def eight_pairs(x, at):
        w, m = get(x)
        v.store(at, early(v.join(w, m)))

    @v.device
    def sixteen_pairs(x, at):
        w, m = get(x)
        v.store(at, early(v.join(w, m)))
        v.store(at + U(64), late(v.join(w, m)))

    put_scales = (
        (sixteen_pairs if count == 32 else eight_pairs) if blocks.has_min else sixteen if count == 16 else eight
    )
    form = v.signed_weights if signed else v.device(lambda q: q)
    transpose = v.transposer(v.load_u8)
    room, all_rows = U(STAGE), 15

    @v.device
    def unpack(x, stride, last, nb, panel):
        q = panel
        d = panel + U(512 * nb)
        stage = panel + U(768 * nb)
        for _ in range(nb >> 3):
            row, at = x, stage
            for i in range(16):
                v.store(at, form(q0(row)))
                v.store(at + U(64), form(q1(row)))
                v.store(at + U(128), form(q2(row)))
                v.store(at + U(192), form(q3(row)))
                put_scales(row, at + U(256))
                at += room
                if i < last:
                    row += stride
            for part in range(parts):
                to = q + U(1024 * part) if part < 4 else d + U(1024 * (part - 4))
                transpose(to, stage + U(64 * part), room, all_rows)
            q += U(4096)
            d += U(64 * count)
            x += U(size)

    return unpack


def _tile_halves(dtype, width):
    """-> tile(...): the same where scales change every 16 values, with the panels of `halves`."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import super_blocks

    U = v.U
    blocks = super_blocks.TYPES[dtype.name]()
    assert blocks.run == 16 and not blocks.signed
    words = v.TileWords(width)
    has_bias, has_min, shift = blocks.bias != 0, blocks.has_min, blocks.bias.bit_length() - 1
    zero, start, start_zero = words.zero, words.start, words.start_zero
    dot4 = words.dot4_u7i8 if blocks.wide else words.dot4_u6i8
    scale_add, store_columns = words.scale_add, words.store_columns
    size, step = U(PANEL_BYTES * width), 4 * width
    first, second, q_at = U(step), U(2 * step), U(3 * step)
    y4 = U(4 * step)
    scale = U(128 if has_min else 64)

    @v.device
    def half(f, q, d, y, s, sums):
        """16 values of the rows at q with those at s of the panel at y, whose sums are at `sums`."""
        n = start(sums, shift) if has_bias else start_zero()
        n = dot4(n, q, s)
        f = scale_add(f, n, v.load_f32(d), y)
        if has_min:  # minus the minimum, times minus the sum
            f = scale_add(f, start(sums, 0), v.negative(v.load_f32(d + U(64))), y)
        return f

    @v.device
    def tile(nb, panel, y, out, stride, rows, columns):
        q = panel
        d = panel + U(512 * nb)
        f = zero()
        for _ in range(nb):
            f = half(f, q, d, y, y + q_at, y + first)
            f = half(f, q + U(256), d + scale, y, y + q_at + y4, y + second)
            d += scale * U(2)
            q += U(512)
            y += size
        store_columns(f, out, stride, rows, columns)

    return tile


def _tile_blocks(dtype, width):
    """-> tile(nb, panel, y, out, stride, rows, columns): 16 rows x `width` tokens."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import super_blocks

    U = v.U
    if dtype.name in super_blocks.TYPES:
        blocks = super_blocks.TYPES[dtype.name]()
        if blocks.run == 16:
            return _tile_halves(dtype, width)
        has_min, wide = blocks.has_min, blocks.wide
    else:
        make = quant(dtype).vector
        assert make is not None
        blocks = make()
        has_min, wide = blocks.m is not None, False
    words = v.TileWords(width)
    bias = v.SIGNED_BIAS if blocks.signed else blocks.bias
    shift = bias.bit_length() - 1
    assert bias in (0, 1 << max(shift, 0))
    has_bias = bias != 0
    dot4 = words.dot4_weights if blocks.signed else words.dot4_u7i8 if wide else words.dot4_u5i8
    zero, start, start_zero = words.zero, words.start, words.start_zero
    scale_add, fma_columns, store_columns = words.scale_add, words.fma_columns, words.store_columns
    s_at, n_at, q_at = U(4 * width), U(8 * width), U(12 * width)
    size, step = U(PANEL_BYTES * width), 4 * width
    half = U(4 * step)

    @v.device
    def tile(nb, panel, y, out, stride, rows, columns):
        q = panel
        d = panel + U(512 * nb)
        f = zero()
        for _ in range(nb):
            n = start(y + n_at, shift) if has_bias else start_zero()
            s = y + q_at
            n = dot4(n, q, s)
            n = dot4(n, q + U(256), s + half)
            f = scale_add(f, n, v.load_f32(d), y)
            d += U(64)
            if has_min:
                f = fma_columns(f, v.load_f32(d), y + s_at)
                d += U(64)
            q += U(512)
            y += size
        store_columns(f, out, stride, rows, columns)

    return tile


def _unpack_floats(dtype):
    """-> unpack(x, stride, last, k, panel): f32[k][16]."""
    from pyggml import simd as v

    U = v.U
    load, load_part = v.float_loader(dtype.name)
    size = SIZES[dtype].type_size
    whole = v.transposer(load)

    @v.device
    def unpack(x, stride, last, k, panel):
        for _ in range(k >> 4):
            whole(panel, x, stride, last)
            panel += U(1024)
            x += U(16 * size)
        for _ in range(k & 15):
            y = x
            for r in range(16):
                v.put_f32(panel, v.lane(load_part(y, 1), 0))
                panel += U(4)
                y += stride if r < last else U(0)
            x += U(size)

    return unpack


def _tile_floats(dtype, width):
    from pyggml import simd as v

    U = v.U
    words = v.TileWords(width)
    zero, fma_columns, store_columns = words.zero, words.fma_columns, words.store_columns
    size = U(4 * width)

    @v.device
    def tile(k, panel, y, out, stride, rows, columns):
        f = zero()
        for _ in range(k):
            f = fma_columns(f, v.load_f32(panel), y)
            panel += U(64)
            y += size
        store_columns(f, out, stride, rows, columns)

    return tile


def rows(name, width):
    """-> kernel: dst (n, m, batch) = src0 (k, n, batch or a divisor of it) . the panels of `width` tokens in scratch.

    ints: blocks (block types) or k, panels of activations a matrix, bytes of each.
    The threads share the panels of 16 rows.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    U = v.U
    dtype = GGMLType[name]
    is_block = SIZES[dtype].block_size > 1
    unpack = {1: _unpack_floats, 32: _unpack_blocks, 256: _unpack_super_blocks}[SIZES[dtype].block_size](dtype)
    tile = _tile_blocks(dtype, width) if is_block else _tile_floats(dtype, width)
    n1, r2, r3 = (record.field("src0.ne", i) for i in (1, 2, 3))
    m1, m2, m3 = (record.field("dst.ne", i) for i in (1, 2, 3))
    weights, output = record.element("src0"), record.element("dst")
    row_bytes, row_out = record.field("src0.nb", 1), record.field("dst.nb", 1)
    panel_at, columns_at = record.field("scratch", 0), record.field("scratch", 1)
    length_of, panels_each, column_bytes = (record.field("ints", i) for i in range(3))
    panel_size, aborted = record.field("thread_bytes"), record.aborted()

    def kernel(step, ith, nth, thread):
        length = length_of(step)
        panel = panel_at(step) + U(thread * panel_size(step))
        stride = U(row_out(step))
        tokens = m1(step)
        groups = (n1(step) + 15) // 16
        work = groups * m2(step) * m3(step)
        for w in range(work * ith // nth, work * (ith + 1) // nth):
            if aborted(step):
                return
            matrix, first = w // groups, w % groups * 16
            i2, i3 = matrix % m2(step), matrix // m2(step)
            x = weights(step, 0, first, i2 // (m2(step) // r2(step)), i3 // (m3(step) // r3(step)))
            have = min(n1(step) - first, 16)
            unpack(x, U(row_bytes(step)), have - 1, length, panel)
            out = output(step, first, 0, i2, i3)
            y = columns_at(step) + U(matrix * panels_each(step) * column_bytes(step))
            for t in range(0, tokens, width):
                tile(length, panel, y, out, stride, have, min(tokens - t, width))
                y += U(column_bytes(step))
                out += stride * U(width)

    return kernel
