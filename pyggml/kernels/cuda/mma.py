"""MUL_MAT and MUL_MAT_ID with many columns on tensor cores: what prompts are made of. Compute capability 8.0.

A block of 256 threads makes 128 rows x 64 columns: its weights and activations for a stretch of k lie in shared memory,
each of eight warps multiplies 32 x 32 of them. Weights in blocks become bytes there and meet the activations' bytes;
F16 and BF16 meet activations rounded to their type. Owns tiles and fragments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda import experts
from pyggml.kernels.cuda.activations import quantized
from pyggml.kernels.cuda.launch_args import Rows, entry, rows
from pyggml.kernels.cuda.layout import BF16, F16, THREADS, blocks
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.kernels.cuda.unpack import ALIGNMENT, HALVES, NO_MINIMUM, UNPACKED
from pyggml.kernels.cuda.unpack_codebook import codebook_of
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

OLDEST = (8, 0)
ROWS, COLUMNS = 128, 64
DEEP = 128
"""Bytes of k at a time: 128 values of blocks, 64 of F16."""
STRIDE = DEEP + 16
"""From row to row in shared memory: rows that are read together lie in different banks."""
GROUPS = DEEP // 32
LISTS = 8 * COLUMNS
"""Bytes for what the columns are: row of b, number."""
MANY_FOR_EACH = 2
LEFT, RIGHT = ROWS * STRIDE, COLUMNS * STRIDE


class Product(NamedTuple):
    """Where the results and the matrices lie, rows of a matrix, columns, and which matrix a batch has."""

    y: Rows
    a: Rows
    n: i32
    m: i32
    batch: i32
    ratio2: i32
    ratio3: i32


def takes(cc: tuple[int, int], node: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether these kernels can do the product: this GPU, dense rows, addresses that are aligned; of experts: so many
    entries that tiles of them are worth it."""
    if cc < OLDEST or b.nb[0] != 4 or node.nb[0] != 4:
        return False
    if node.op == Op.MUL_MAT_ID:
        n = experts.entries(node)
        if n < MANY_FOR_EACH * a.ne[2] or a.ne[2] > experts.MOST or n > 65000 * COLUMNS:
            return False
    elif b.ne[2] * b.ne[3] > 65535 or b.ne[1] > 65535 * COLUMNS:
        return False
    if a.type in (F16, BF16):
        return a.nb[0] == 2 and a.ne[0] % 8 == 0 and all(x % 16 == 0 for x in (a.data, *a.nb[1:], b.data, *b.nb[1:]))
    return a.type in UNPACKED and all(x % ALIGNMENT.get(a.type, 2) == 0 for x in (a.data, *a.nb[1:]))


def lower(builder: Builder, node: Tensor, a: Tensor, b: Tensor) -> None:
    grid = (blocks(a.ne[1], ROWS), blocks(b.ne[1], COLUMNS), b.ne[2] * b.ne[3])
    table, ratios, x = experts.Table(), (b.ne[2] // a.ne[2], b.ne[3] // a.ne[3]), None
    if a.type not in (F16, BF16):
        x = quantized(builder, b)
    if node.op == Op.MUL_MAT_ID:
        table, ratios = experts.sorted_entries(builder, node, COLUMNS), (1, 1)
        grid = (grid[0], table.tiles, 1)
    product = Product(rows(node), rows(a), a.ne[1], b.ne[1], b.ne[2], *ratios)
    if x is None:
        args = FloatsArgs(product, b=rows(b), k=a.ne[0], table=table)
        builder.launch(Spec("mma", "floats", (a.type.name,)), grid, THREADS, args, LISTS + 2 * (LEFT + RIGHT))
        return
    halves = 2 if a.type in HALVES else 1
    shared = LISTS + LEFT + RIGHT + 8 * GROUPS * (ROWS + COLUMNS) * halves
    packed = IntegersArgs(
        product,
        x=x.bytes,
        scales=x.scales,
        step=x.step,
        codebook=codebook_of(builder, a.type),
        groups=a.ne[0] // 32,
        table=table,
    )
    builder.launch(Spec("mma", "integers", (a.type.name,)), grid, THREADS, packed, shared)


def _columns():
    """-> f(...): which columns a block makes: notes each one's row of b and its number in shared memory; the matrix, the
    first column, how many."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.experts import tile_of

    tile = tile_of()

    @d.inline
    def columns(a, a2, a3, m, batch, ratio2, ratio3, table, tiles, used, shared_rows):
        me = d.thread()
        lists = d.shared()
        if table != 0:
            which, first, end = tile(table, tiles, d.block_y())
            width = min(COLUMNS, end - first)
            if me < width:
                entry = d.ld_i32(table + 4 + 12 * d.i64(tiles) + 4 * (first + me))
                token = d.udiv(entry, used)
                d.sst_i32(lists + 4 * me, token * shared_rows + d.urem(entry - token * used, shared_rows))
                d.sst_i32(lists + 4 * (COLUMNS + me), entry)
            elif me < COLUMNS:
                d.sst_i32(lists + 4 * me, 0)
            matrix = a + which * a2
        else:
            z = d.block_z()
            i3 = d.udiv(z, batch)
            matrix = a + d.udiv(z - i3 * batch, ratio2) * a2 + d.udiv(i3, ratio3) * a3
            first = d.i32(d.block_y() * COLUMNS)
            width = min(COLUMNS, m - first)
            if me < COLUMNS:
                column = min(first + me, m - 1)
                d.sst_i32(lists + 4 * me, z * m + column)
                d.sst_i32(lists + 4 * (COLUMNS + me), column)
        d.barrier()
        return matrix, width

    return columns


class IntegersArgs(NamedTuple):
    product: Product
    x: i64
    scales: i64
    step: i32
    codebook: i64
    groups: i32
    table: experts.Table


def integers(name):
    """Blocks of integers with activations of bytes."""
    from pyggml.dtypes import GGMLType
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.unpack import unpack

    group, store, columns = unpack(name), _storing(), _columns()
    halves, minimum = GGMLType[name] in HALVES, GGMLType[name] not in NO_MINIMUM
    wide = 16 if halves else 8  # bytes of scales for each group of a row
    ones = 0x01010101

    @d.inline
    def keep(inside, to, scales, q0, q1, q2, q3, q4, q5, q6, q7, d0, m0, d1, m1):
        """A group of a row to shared memory; zeros where it lies behind the end."""
        zero = d.f32(0)
        if inside:
            d.sst_i32x4(to, q0, q1, q2, q3)
            d.sst_i32x4(to + 16, q4, q5, q6, q7)
            if halves:
                d.sst_f32x4(scales, d0, m0, d1, m1)
            else:
                d.sst_f32x2(scales, d0, m0)
        else:
            d.sst_i32x4(to, 0, 0, 0, 0)
            d.sst_i32x4(to + 16, 0, 0, 0, 0)
            if halves:
                d.sst_f32x4(scales, zero, zero, zero, zero)
            else:
                d.sst_f32x2(scales, zero, zero)

    @d.inline
    def twelve(row, j, codebook):
        if halves:
            return group(row, j, codebook)
        q0, q1, q2, q3, q4, q5, q6, q7, d0, m0 = group(row, j, codebook)
        return q0, q1, q2, q3, q4, q5, q6, q7, d0, m0, d0, m0

    @entry(IntegersArgs, THREADS)
    def kernel(
        y, y1, y2, y3, a, a1, a2, a3, n, m, batch, ratio2, ratio3, x, scales, step, codebook, groups, table, tiles, used,
        shared_rows,
    ):  # fmt: skip
        me = d.i32(d.thread())
        lane, warp = d.i32(me & 31), d.i32(me >> 5)
        wm, wn = d.i32((warp & 3) * 32), d.i32((warp >> 2) * 32)
        matrix, width = columns(a, a2, a3, m, batch, ratio2, ratio3, table, tiles, used, shared_rows)
        row0 = d.i32(d.block_x() * ROWS)
        lists = d.shared()
        left = d.i32(lists + LISTS)
        right = d.i32(left + LEFT)
        left_scales = d.i32(right + RIGHT)
        right_scales = d.i32(left_scales + ROWS * GROUPS * wide)
        total = d.cuda.local.array(32, d.f32)
        for i in range(32):
            total[i] = d.f32(0)
        low, high = d.cuda.local.array(8, d.f32), d.cuda.local.array(8, d.f32)
        j0 = d.i32(0)
        while j0 < groups and width > 0:
            for i in range(2):  # columns' bytes
                u = d.i32(me + 256 * i)
                c, part = d.i32(u >> 3), d.i32(u & 7)
                column = d.sld_i32(lists + 4 * c)
                d.cp_async16(right + c * STRIDE + part * 16, x + column * d.i64(step) + j0 * 32 + part * 16)
            d.cp_async_commit()
            c, part = d.i32(me >> 2), d.i32(me & 3)
            column = d.sld_i32(lists + 4 * c)
            scale, total_of = d.ld_f32x2(scales + column * d.i64(step >> 2) + (j0 + part) * 8)
            # both groups of this thread are asked for before either is waited for
            r, last = d.i32(me >> 2), d.i32(min(j0 + part, groups - 1))
            g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11 = twelve(
                matrix + min(row0 + r, n - 1) * a1, last, codebook
            )
            h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11 = twelve(
                matrix + min(row0 + r + 64, n - 1) * a1, last, codebook
            )
            inside = j0 + part < groups
            if halves:
                at = x + column * d.i64(step) + (j0 + part) * 32
                u0, u1, u2, u3 = d.ld_i32x4(at)
                s = d.dp4a(ones, u3, d.dp4a(ones, u2, d.dp4a(ones, u1, d.dp4a(ones, u0, 0))))
                part_of = scale * d.f32(s)
                d.sst_f32x4(right_scales + me * 16, scale, part_of, total_of - part_of, d.f32(0))
            else:
                d.sst_f32x2(right_scales + me * 8, scale, total_of)
            to, at = left + r * STRIDE + part * 32, left_scales + me * wide
            keep(inside, to, at, g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11)
            keep(inside, to + 64 * STRIDE, at + 256 * wide, h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11)
            d.cp_async_wait()
            d.barrier()
            for k in range(GROUPS):
                for i in range(2):
                    r = wm + 16 * i
                    at = left + (r + (lane & 15)) * STRIDE + 32 * k + (lane >> 4) * 16
                    q0, q1, q2, q3 = d.ldmatrix_x4(at)
                    for h in range(2):
                        to = left_scales + ((r + (lane >> 2) + 8 * h) * GROUPS + k) * wide
                        if halves:
                            low[4 * h], low[4 * h + 1], low[4 * h + 2], low[4 * h + 3] = d.sld_f32x4(to)
                        else:
                            low[4 * h], low[4 * h + 1] = d.sld_f32x2(to)
                    for jj in range(2):
                        c = wn + 16 * jj
                        at = right + (c + (lane & 7) + (lane >> 4) * 8) * STRIDE + 32 * k + ((lane >> 3) & 1) * 16
                        b0, b1, b2, b3 = d.ldmatrix_x4(at)
                        for half in range(2):
                            v0 = b2 if half else b0
                            v1 = b3 if half else b1
                            t = (i * 4 + jj * 2 + half) * 4
                            for e in range(2):
                                cc = c + 8 * half + (lane & 3) * 2 + e
                                if halves:
                                    (high[4 * e], high[4 * e + 1], high[4 * e + 2], high[4 * e + 3]) = d.sld_f32x4(
                                        right_scales + (cc * GROUPS + k) * 16
                                    )
                                else:
                                    high[4 * e], high[4 * e + 1] = d.sld_f32x2(right_scales + (cc * GROUPS + k) * 8)
                            if halves:
                                c0, c1, c2, c3 = d.mma_s8_k16(q0, q1, v0, 0, 0, 0, 0)
                                e0, e1, e2, e3 = d.mma_s8_k16(q2, q3, v1, 0, 0, 0, 0)
                                f0 = d.fma(low[0], d.f32(c0), low[2] * d.f32(e0))
                                f1 = d.fma(low[0], d.f32(c1), low[2] * d.f32(e1))
                                f2 = d.fma(low[4], d.f32(c2), low[6] * d.f32(e2))
                                f3 = d.fma(low[4], d.f32(c3), low[6] * d.f32(e3))
                                total[t] = d.fma(f0, high[0], total[t])
                                total[t + 1] = d.fma(f1, high[4], total[t + 1])
                                total[t + 2] = d.fma(f2, high[0], total[t + 2])
                                total[t + 3] = d.fma(f3, high[4], total[t + 3])
                                if minimum:
                                    total[t] += d.fma(low[1], high[1], low[3] * high[2])
                                    total[t + 1] += d.fma(low[1], high[5], low[3] * high[6])
                                    total[t + 2] += d.fma(low[5], high[1], low[7] * high[2])
                                    total[t + 3] += d.fma(low[5], high[5], low[7] * high[6])
                            else:
                                c0, c1, c2, c3 = d.mma_s8(q0, q1, q2, q3, v0, v1, 0, 0, 0, 0)
                                total[t] = d.fma(d.f32(c0), low[0] * high[0], total[t])
                                total[t + 1] = d.fma(d.f32(c1), low[0] * high[4], total[t + 1])
                                total[t + 2] = d.fma(d.f32(c2), low[4] * high[0], total[t + 2])
                                total[t + 3] = d.fma(d.f32(c3), low[4] * high[4], total[t + 3])
                                if minimum:
                                    total[t] = d.fma(low[1], high[1], total[t])
                                    total[t + 1] = d.fma(low[1], high[5], total[t + 1])
                                    total[t + 2] = d.fma(low[5], high[1], total[t + 2])
                                    total[t + 3] = d.fma(low[5], high[5], total[t + 3])
            d.barrier()
            j0 = d.i32(j0 + GROUPS)
        store(total, y, y1, y2, y3, batch, table, used, row0 + wm, wn, n, width, lane)

    return kernel


def _storing():
    """-> f: a warp's 32 x 32 results to where they belong."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def store(total, y, y1, y2, y3, batch, table, used, row0, column0, n, width, lane):
        i3 = d.udiv(d.block_z(), batch)
        whole = y + (d.block_z() - i3 * batch) * y2 + i3 * y3
        for j in range(4):
            for e in range(2):
                column = column0 + 8 * j + (lane & 3) * 2 + e
                if column < width:
                    number = d.sld_i32(d.shared() + 4 * (COLUMNS + column))
                    to = whole + number * y1
                    if table != 0:
                        token = d.udiv(number, used)
                        to = y + (number - token * used) * y1 + token * y2
                    for i in range(2):
                        for h in range(2):
                            row = row0 + 16 * i + (lane >> 2) + 8 * h
                            if row < n:
                                d.st_f32(to + row * 4, total[(i * 4 + j) * 4 + 2 * h + e])

    return store


class FloatsArgs(NamedTuple):
    product: Product
    b: Rows
    k: i32
    table: experts.Table


def floats(name):
    """F16 or BF16 with F32, which is rounded to the same type."""
    from pyggml.kernels.cuda import device as d

    store, columns = _storing(), _columns()
    brain = name == "BF16"

    @d.inline
    def pack(u, v):
        return d.pack_bf16(u, v) if brain else d.pack_f16(u, v)

    @d.inline
    def product(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        if brain:
            return d.mma_bf16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)
        return d.mma_f16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)

    @entry(FloatsArgs, THREADS)
    def kernel(
        y, y1, y2, y3, a, a1, a2, a3, n, m, batch, ratio2, ratio3, b, b1, b2, b3, k, table, tiles, used,
        shared_rows,
    ):  # fmt: skip
        me = d.i32(d.thread())
        lane, warp = d.i32(me & 31), d.i32(me >> 5)
        wm, wn = d.i32((warp & 3) * 32), d.i32((warp >> 2) * 32)
        matrix, width = columns(a, a2, a3, m, batch, ratio2, ratio3, table, tiles, used, shared_rows)
        row0 = d.i32(d.block_x() * ROWS)
        i3 = d.udiv(d.block_z(), batch)
        others = b + (d.block_z() - i3 * batch) * b2 + i3 * b3
        lists = d.shared()
        total = d.cuda.local.array(32, d.f32)
        for i in range(32):
            total[i] = d.f32(0)
        part = d.i32(me & 7)
        lines, ahead = d.cuda.local.array(2, d.i64), d.cuda.local.array(16, d.f32)
        for i in range(2):
            c = d.i32((me >> 3) + 32 * i)
            lines[i] = others + d.sld_i32(lists + 4 * (COLUMNS + c)) * b1
            if table != 0:
                line = d.sld_i32(lists + 4 * c)
                token = d.udiv(line, shared_rows)
                lines[i] = b + (line - token * shared_rows) * b1 + token * b2
        k0, at = d.i32(-64), d.i32(0)
        while k0 < k and width > 0:
            # the next stage is on its way, columns in registers, while one is multiplied
            to = d.i32(lists + LISTS + at)
            inside = k0 + 64 + part * 8 < k
            for i in range(4):
                r = d.i32((me >> 3) + 32 * i)
                if inside:
                    d.cp_async16(
                        to + r * STRIDE + part * 16, matrix + min(row0 + r, n - 1) * a1 + (k0 + 64 + part * 8) * 2
                    )
                else:
                    d.sst_i32x4(to + r * STRIDE + part * 16, 0, 0, 0, 0)
            d.cp_async_commit()
            for i in range(2):
                for e in range(8):
                    ahead[8 * i + e] = d.f32(0)
                if inside:
                    v = lines[i] + (k0 + 64 + part * 8) * 4
                    ahead[8 * i], ahead[8 * i + 1], ahead[8 * i + 2], ahead[8 * i + 3] = d.ld_f32x4(v)
                    ahead[8 * i + 4], ahead[8 * i + 5], ahead[8 * i + 6], ahead[8 * i + 7] = d.ld_f32x4(v + 16)
            if k0 >= 0:
                left = d.i32(lists + LISTS + LEFT + RIGHT - at)
                right = d.i32(left + LEFT)
                for kk in range(4):
                    for i in range(2):
                        from_left = left + (wm + 16 * i + (lane & 15)) * STRIDE + 32 * kk + (lane >> 4) * 16
                        q0, q1, q2, q3 = d.ldmatrix_x4(from_left)
                        for jj in range(2):
                            c = wn + 16 * jj + (lane & 7) + (lane >> 4) * 8
                            w0, w1, w2, w3 = d.ldmatrix_x4(right + c * STRIDE + 32 * kk + ((lane >> 3) & 1) * 16)
                            t = (i * 4 + jj * 2) * 4
                            total[t], total[t + 1], total[t + 2], total[t + 3] = product(
                                q0, q1, q2, q3, w0, w1, total[t], total[t + 1], total[t + 2], total[t + 3]
                            )
                            total[t + 4], total[t + 5], total[t + 6], total[t + 7] = product(
                                q0, q1, q2, q3, w2, w3, total[t + 4], total[t + 5], total[t + 6], total[t + 7]
                            )
            for i in range(2):
                c = d.i32((me >> 3) + 32 * i)
                w0, w1 = pack(ahead[8 * i], ahead[8 * i + 1]), pack(ahead[8 * i + 2], ahead[8 * i + 3])
                w2, w3 = pack(ahead[8 * i + 4], ahead[8 * i + 5]), pack(ahead[8 * i + 6], ahead[8 * i + 7])
                d.sst_i32x4(to + LEFT + c * STRIDE + part * 16, w0, w1, w2, w3)
            d.cp_async_wait()
            d.barrier()
            at = d.i32(LEFT + RIGHT - at)
            k0 = d.i32(k0 + 64)
        store(total, y, y1, y2, y3, batch, table, used, row0 + wm, wn, n, width, lane)

    return kernel
