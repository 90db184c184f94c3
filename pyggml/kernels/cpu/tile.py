"""Matrix-matrix products: 16 rows of weights are unpacked into scratch, then met with `width` tokens at a time in
registers, fewer where so many are not left. Meanwhile the next 16 rows are asked for: they arrive while nothing is read.

Owns the unpacked panel of weights and the tile; knows the activations' panels from activations.py.
Panel of 16 rows of a block type, for each block of 32: q u8[8][16][4] in one run, behind all of them d f32[16] (and
m f32[16]) a block; where scales change every 16 values, both for each half of a block. Of a float type: f32[k][16].
"""

from __future__ import annotations

from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.kernels.cpu.activations import PANEL_BYTES, TAILS
from pyggml.kernels.cpu.formats import FORMATS, Form, functions
from pyggml.kernels.cpu.product_args import ProductArgs

ROWS = 16
STAGE = 384  # bytes of a row of 256 values on their way into the panel


def panel_bytes(dtype: GGMLType, k: int) -> int:
    """Bytes of 16 unpacked rows, and what unpacking them takes."""
    if SIZES[dtype].block_size == 1:
        return (k + 16) * 64
    nb = k // 32
    return nb * 768 + 16 * STAGE if SIZES[dtype].block_size == 256 else nb * 640


def work_bytes(dtype: GGMLType, k: int) -> int:
    """Scratch of one thread. Behind the panel is room for 16 rows of blocks as they are: where fewer are left, those are
    copied there, so that no unpacking has to know."""
    return panel_bytes(dtype, k) + (16 * row_size(dtype, k) if SIZES[dtype].block_size > 1 else 0)


def _unpack_blocks(dtype):
    """-> unpack(x, stride, last, nb, panel): 16 rows of nb blocks; rows behind row `last` do not matter."""
    from pyggml import simd as v

    U = v.U
    blocks = functions(dtype).vector()
    size = U(SIZES[dtype].type_size)
    columns, d_of = blocks.columns, v.exponents_at(blocks.d) if blocks.exponent else v.halves_at(blocks.d)
    has_min, signed = blocks.m is not None, blocks.signed
    m_of = v.halves_at(blocks.m or 0)

    @v.device
    def unpack(x, stride, last, nb, panel):
        q = panel
        d = panel + U(512 * nb)
        for _ in range(nb):
            if signed:
                v.put_columns(q, v.signed_columns(columns(x, stride)))
            else:
                v.put_columns(q, columns(x, stride))
            v.store(d, d_of(x, stride))
            d += U(64)
            if has_min:
                v.store(d, m_of(x, stride))
                d += U(64)
            q += U(512)
            x += size

    return unpack


def _unpack_super_columns(dtype):
    """-> unpack(x, stride, last, nb, panel): the same of nb / 8 super-blocks whose columns formats/k_quants_columns.py knows."""
    from pyggml import simd as v

    U = v.U
    columns = functions(dtype).columns()
    put_q = v.put_columns_of(columns.q, columns.levels, columns.levels is not None)
    put_numbers = v.put_products_of(columns.numbers, columns.halves, columns.flip, columns.less)
    size, numbers = U(SIZES[dtype].type_size), U(64 * len(columns.numbers))

    @v.device
    def unpack(x, stride, last, nb, panel):
        q = panel
        d = panel + U(512 * nb)
        for _ in range(nb >> 3):
            put_q(q, x, stride)
            put_numbers(d, x, stride)
            q += U(4096)
            d += numbers
            x += size

    return unpack


def _unpack_super_blocks(dtype):
    """-> unpack(x, stride, last, nb, panel): the same of nb / 8 super-blocks. Behind the panel each row's values and
    scales are put down first, so that one transposition does for all types and parts."""
    from pyggml import simd as v

    U = v.U
    if functions(dtype).columns is not None:
        return _unpack_super_columns(dtype)
    blocks = functions(dtype).super_blocks()
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
            for _ in range(16):
                v.store(at, form(q0(row)))
                v.store(at + U(64), form(q1(row)))
                v.store(at + U(128), form(q2(row)))
                v.store(at + U(192), form(q3(row)))
                put_scales(row, at + U(256))
                at += room
                row += stride
            for part in range(parts):
                to = q + U(1024 * part) if part < 4 else d + U(1024 * (part - 4))
                transpose(to, stage + U(64 * part), room, all_rows)
            q += U(4096)
            d += U(64 * count)
            x += U(size)

    return unpack


def _tile_halves(dtype, count, width, lines):
    """-> tile(...): the same where scales change every 16 values, with the panels of `halves`."""
    from pyggml import simd as v

    U = v.U
    blocks = functions(dtype).super_blocks()
    assert blocks.run == 16 and not blocks.signed
    ops = v.TileOps(count, width)
    has_bias, has_min, shift = blocks.bias != 0, blocks.has_min, blocks.bias.bit_length() - 1
    zero, start, start_zero = ops.zero, ops.start, ops.start_zero
    dot4 = ops.dot4_u7i8 if blocks.wide else ops.dot4_u6i8
    scale_add, store_columns = ops.scale_add, ops.store_columns
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
    def tile(nb, panel, y, out, stride, rows, columns, ahead):
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


def _tile_blocks(dtype, count, width, lines=0):
    """-> tile(nb, panel, y, out, stride, rows, columns): 16 rows x the first `count` tokens of a panel of `width`."""
    from pyggml import simd as v

    U = v.U
    if FORMATS[dtype].form is Form.SUPER_BLOCKS:
        blocks = functions(dtype).super_blocks()
        if blocks.run == 16:
            return _tile_halves(dtype, count, width, lines)
        has_min, wide = blocks.has_min, blocks.wide
    else:
        blocks = functions(dtype).vector()
        has_min, wide = blocks.m is not None, False
    ops = v.TileOps(count, width)
    bias = v.SIGNED_BIAS if blocks.signed else blocks.bias
    shift = bias.bit_length() - 1
    assert bias in (0, 1 << max(shift, 0))
    has_bias = bias != 0
    dot4 = ops.dot4_weights if blocks.signed else ops.dot4_u7i8 if wide else ops.dot4_u5i8
    zero, start, start_zero = ops.zero, ops.start, ops.start_zero
    scale_add, fma_columns, store_columns = ops.scale_add, ops.fma_columns, ops.store_columns
    s_at, n_at, q_at = U(4 * width), U(8 * width), U(12 * width)
    size, step = U(PANEL_BYTES * width), 4 * width
    half = U(4 * step)
    apart = U(SIZES[dtype].type_size * 16 * 32 // SIZES[dtype].block_size)

    @v.device
    def tile(nb, panel, y, out, stride, rows, columns, ahead):
        q = panel
        d = panel + U(512 * nb)
        f = zero()
        for _ in range(nb):
            for i in range(lines):
                v.prefetch_l2(ahead + U(64 * i))
            ahead += apart
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


def _tile_floats(dtype, count, width, lines=0):
    from pyggml import simd as v

    U = v.U
    ops = v.TileOps(count, width)
    zero, fma_columns, store_columns = ops.zero, ops.fma_columns, ops.store_columns
    size = U(4 * width)

    @v.device
    def tile(k, panel, y, out, stride, rows, columns, ahead):
        f = zero()
        for _ in range(k):
            f = fma_columns(f, v.load_f32(panel), y)
            panel += U(64)
            y += size
        store_columns(f, out, stride, rows, columns)

    return tile


def rows(name, width):
    """-> kernel: dst (n, m, batch) = src0 (k, n, batch or a divisor of it) . the panels of `width` tokens in scratch.

    The threads share the panels of 16 rows. Takes ProductArgs.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    dtype = GGMLType[name]
    is_block = SIZES[dtype].block_size > 1
    forms = {Form.FLOATS: _unpack_floats, Form.BLOCKS_32: _unpack_blocks, Form.SUPER_BLOCKS: _unpack_super_blocks}
    unpack = forms[FORMATS[dtype].form](dtype)
    tile_of = _tile_blocks if is_block else _tile_floats
    lines = -(-SIZES[dtype].type_size * 8 // SIZES[dtype].block_size)
    wide = width > TAILS[-1]
    first_tile = tile_of(dtype, width, width, lines)
    tile = tile_of(dtype, width, width) if wide else first_tile
    few, some = TAILS if wide else (0, 0)
    tile_few, tile_some = tile_of(dtype, few or width, width, lines), tile_of(dtype, some or width, width, lines)
    n1, r2, r3 = (record.field("src0.ne", i) for i in (1, 2, 3))
    m1, m2, m3 = (record.field("dst.ne", i) for i in (1, 2, 3))
    weights, output = record.element("src0"), record.element("dst")
    row_bytes, row_out = record.field("src0.nb", 1), record.field("dst.nb", 1)
    panel_at, columns_at = record.field("scratch", 0), record.field("scratch", 1)
    args = step_args.readers(ProductArgs)
    length_of, panels_each, column_bytes = args.length, args.panels_each, args.column_bytes
    panel_size, aborted = record.field("thread_bytes"), record.aborted()
    fixed, each_block = panel_bytes(dtype, 0), (panel_bytes(dtype, 256) - panel_bytes(dtype, 0)) // 8
    parts, part_size = max(SIZES[dtype].block_size // 32, 1), SIZES[dtype].type_size

    @v.device
    def kept(x, stride, have, length, panel):
        """(address, stride) of a copy of the rows behind the panel."""
        to, size = panel + U(each_block * length + fixed), length // parts * part_size
        for i in range(have):
            v.copy_bytes(to + U(i * size), x, size)
            x += stride
        return to, U(size)

    @v.device
    def products(length, panel, y, out, stride, have, left, ahead, is_first):
        """Of a panel of activations, of whose tokens `left` are there. What lies at `ahead` is asked for once, by the
        first tile; narrow ones come last, and asking again costs them little."""
        if left <= few:
            tile_few(length, panel, y, out, stride, have, left, ahead)
        elif left <= some:
            tile_some(length, panel, y, out, stride, have, left, ahead)
        elif wide and is_first:
            first_tile(length, panel, y, out, stride, have, min(left, width), ahead)
        else:
            tile(length, panel, y, out, stride, have, min(left, width), ahead)

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
            x, apart = (
                weights(step, 0, first, i2 // (m2(step) // r2(step)), i3 // (m3(step) // r3(step))),
                U(row_bytes(step)),
            )
            have = min(n1(step) - first, 16)
            ahead = x + apart * U(16)
            if is_block and have < 16:
                x, apart = kept(x, apart, have, length, panel)
            unpack(x, apart, have - 1, length, panel)
            out = output(step, first, 0, i2, i3)
            y = columns_at(step) + U(matrix * panels_each(step) * column_bytes(step))
            for t in range(0, tokens, width):
                products(length, panel, y, out, stride, have, tokens - t, ahead, t == 0)
                y += U(column_bytes(step))
                out += stride * U(width)

    return kernel
