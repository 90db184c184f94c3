"""MUL_MAT and MUL_MAT_ID with many columns on tensor cores: what prompts are made of. Compute capability 8.0.

A block of 256 threads makes 128 rows x 64 columns: its weights and activations for a stretch of k lie in shared memory,
each of eight warps multiplies 32 x 32 of them. Weights in blocks become bytes there and meet the activations' bytes;
F16 and BF16 meet activations rounded to their type. Owns tiles and fragments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES
from pyggml.kernels.cuda import experts
from pyggml.kernels.cuda.activations import quantized
from pyggml.kernels.cuda.launch_args import Rows, entry, rows
from pyggml.kernels.cuda.layout import BF16, F16, THREADS, blocks
from pyggml.kernels.cuda.mma_parts import COLUMNS, LISTS, ROWS, Split, adding, columns, split_of, storing
from pyggml.kernels.cuda.mma_stage import DEEP, GROUPS, areas
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.kernels.cuda.unpack import ALIGNMENT, HALVES, UNPACKED, has_minimum
from pyggml.kernels.cuda.unpack_codebook import codebook_of
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

OLDEST = (8, 0)
STRIDE = DEEP + 16
"""From row to row of F16 in shared memory: rows that are read together lie in different banks."""
MANY_FOR_EACH = 2
EXACT = 0x4B400000
"""What integer sums begin at, so that no instruction converts them."""
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
        split = (
            split_of(builder, grid, blocks(a.ne[0], DEEP // 2))
            if table.tiles == 0
            else Split(stages=blocks(a.ne[0], DEEP // 2))
        )
        args = FloatsArgs(product, b=rows(b), k=a.ne[0], table=table, split=split)
        grid = (grid[0], grid[1], grid[2] * split.splits)
        builder.launch(Spec("mma", "floats", (a.type.name,)), grid, THREADS, args, LISTS + 2 * (LEFT + RIGHT))
        return
    stages = blocks(a.ne[0], DEEP)
    split = split_of(builder, grid, stages) if table.tiles == 0 else Split(stages=stages)
    grid = (grid[0], grid[1], grid[2] * split.splits)
    packed = IntegersArgs(
        product,
        x=x.bytes,
        scales=x.scales,
        step=x.step,
        codebook=codebook_of(builder, a.type),
        groups=a.ne[0] // 32,
        table=table,
        split=split,
    )
    builder.launch(Spec("mma", "integers", (a.type.name,)), grid, THREADS, packed, areas(a.type).size)


class IntegersArgs(NamedTuple):
    product: Product
    x: i64
    scales: i64
    step: i32
    codebook: i64
    groups: i32
    table: experts.Table
    split: Split


def integers(name):
    """Blocks of integers with activations of bytes.

    A stage is 128 values of k. While it is multiplied, what its successor needs of the blocks is copied, as it is, and
    unpacked while the columns' bytes are copied. A row or a column of bytes is eight pieces of 16, of which piece p lies
    at place p ^ (row & 7), so that rows that are read together lie in different banks.
    """
    from pyggml.dtypes import GGMLType
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.mma_stage import areas, blocks_of, copying, from_shared_memory
    from pyggml.kernels.cuda.unpack import unpack

    dtype = GGMLType[name]
    stages_each, block_bytes, at_once, _, row_bytes, held = blocks_of(dtype)
    copy, group = copying(dtype), unpack(name, signed=True, memory=from_shared_memory(), held=held)
    at_left, at_right, at_left_scales, at_right_scales, at_blocks, _, wide, wide_right = areas(dtype)
    store, choose, add = storing(), columns(), adding()
    halves, minimum = dtype in HALVES, has_minimum(dtype, signed=True)
    ends_inside = SIZES[dtype].block_size < DEEP  # a row may end within a stage
    turns = 2 if halves and minimum else 1  # all rows' scales at once take too many registers
    pair = not halves
    ones = 0x01010101
    group_left, group_right = ROWS * wide, COLUMNS * wide_right

    @d.inline
    def keep(to, scales, q0, q1, q2, q3, q4, q5, q6, q7, d0, m0, d1, m1):
        """A group of a row to shared memory."""
        d.sst_i32x4(to, q0, q1, q2, q3)
        d.sst_i32x4(to ^ 16, q4, q5, q6, q7)
        if halves and minimum:
            d.sst_f32x4(scales, d0, m0, d1, m1)
        elif halves:
            d.sst_f32x2(scales, d0, d1)
        elif minimum:
            d.sst_f32x2(scales, d0, m0)
        else:
            d.sst_f32(scales, d0)

    @d.inline
    def twelve(row, j, codebook):
        if halves:
            return group(row, j, codebook)
        q0, q1, q2, q3, q4, q5, q6, q7, d0, m0 = group(row, j, codebook)
        return q0, q1, q2, q3, q4, q5, q6, q7, d0, m0, d0, m0

    @d.inline
    def exact(c):
        """A sum that began at EXACT as a float: its bits are those of 1.5 x 2^23 plus the sum, which is below 2^22."""
        return d.bits_float(c) - d.f32(12582912)

    @d.inline
    def scales_of_rows(low, at, turn):
        """Those of a thread's four rows, or of two of them: low[4 x row + ...] are d and m of the first half, of the second."""
        if halves and minimum:
            low[0], low[1], low[2], low[3] = d.sld_f32x4(at + 32 * turn)
            low[4], low[5], low[6], low[7] = d.sld_f32x4(at + 32 * turn + 16)
        elif halves:
            low[0], low[2], low[4], low[6] = d.sld_f32x4(at)
            low[8], low[10], low[12], low[14] = d.sld_f32x4(at + 16)
        elif minimum:
            low[0], low[1], low[4], low[5] = d.sld_f32x4(at)
            low[8], low[9], low[12], low[13] = d.sld_f32x4(at + 16)
        else:
            low[0], low[4], low[8], low[12] = d.sld_f32x4(at)

    @d.inline
    def scales_of_columns(high, at):
        """Those of two neighbours: high[4 x column + ...]."""
        if halves and minimum:
            high[0], high[1], high[2], high[3] = d.sld_f32x4(at)
            high[4], high[5], high[6], high[7] = d.sld_f32x4(at + 16)
        elif minimum:
            high[0], high[1], high[4], high[5] = d.sld_f32x4(at)
        else:
            high[0], high[4] = d.sld_f32x2(at)

    @d.inline
    def multiply(total, low, high, w, left, right, left_scales, right_scales, k):
        """Group k of the stage: 32 x 32 results of a warp."""
        left, right = d.i32(left ^ (32 * k)), d.i32(right ^ (32 * k))
        left_scales, right_scales = d.i32(left_scales + k * group_left), d.i32(right_scales + k * group_right)
        for turn in range(turns):
            scales_of_rows(low, left_scales, turn)
            for i in range(2 // turns):
                w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3] = d.ldmatrix_x4(left + (turn + i) * 16 * DEEP)
            for jj in range(2):
                b0, b1, b2, b3 = d.ldmatrix_x4(right + jj * 16 * DEEP)
                for half in range(2):
                    v0 = b2 if half else b0
                    v1 = b3 if half else b1
                    scales_of_columns(high, right_scales + (16 * jj + 8 * half) * wide_right)
                    for i in range(2 // turns):
                        q0, q1, q2, q3 = w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]
                        t = ((turn + i) * 4 + jj * 2 + half) * 4
                        r = 8 * i
                        if halves:
                            c0, c1, c2, c3 = d.mma_s8_k16(q0, q1, v0, EXACT, EXACT, EXACT, EXACT)
                            e0, e1, e2, e3 = d.mma_s8_k16(q2, q3, v1, EXACT, EXACT, EXACT, EXACT)
                            f0 = d.fma(low[r], exact(c0), low[r + 2] * exact(e0))
                            f1 = d.fma(low[r], exact(c1), low[r + 2] * exact(e1))
                            f2 = d.fma(low[r + 4], exact(c2), low[r + 6] * exact(e2))
                            f3 = d.fma(low[r + 4], exact(c3), low[r + 6] * exact(e3))
                            total[t] = d.fma(f0, high[0], total[t])
                            total[t + 1] = d.fma(f1, high[4], total[t + 1])
                            total[t + 2] = d.fma(f2, high[0], total[t + 2])
                            total[t + 3] = d.fma(f3, high[4], total[t + 3])
                            if minimum:
                                total[t] = d.fma(low[r + 1], high[1], d.fma(low[r + 3], high[2], total[t]))
                                total[t + 1] = d.fma(low[r + 1], high[5], d.fma(low[r + 3], high[6], total[t + 1]))
                                total[t + 2] = d.fma(low[r + 5], high[1], d.fma(low[r + 7], high[2], total[t + 2]))
                                total[t + 3] = d.fma(low[r + 5], high[5], d.fma(low[r + 7], high[6], total[t + 3]))
                        else:
                            c0, c1, c2, c3 = d.mma_s8(q0, q1, q2, q3, v0, v1, EXACT, EXACT, EXACT, EXACT)
                            total[t] = d.fma(exact(c0), low[r] * high[0], total[t])
                            total[t + 1] = d.fma(exact(c1), low[r] * high[4], total[t + 1])
                            total[t + 2] = d.fma(exact(c2), low[r + 4] * high[0], total[t + 2])
                            total[t + 3] = d.fma(exact(c3), low[r + 4] * high[4], total[t + 3])
                            if minimum:
                                total[t] = d.fma(low[r + 1], high[1], total[t])
                                total[t + 1] = d.fma(low[r + 1], high[5], total[t + 1])
                                total[t + 2] = d.fma(low[r + 5], high[1], total[t + 2])
                                total[t + 3] = d.fma(low[r + 5], high[5], total[t + 3])

    @entry(IntegersArgs, THREADS, blocks=2)
    def kernel(
        y, y1, y2, y3, a, a1, a2, a3, n, m, batch, ratio2, ratio3, x, scales, step, codebook, groups, table, tiles, used,
        shared_rows, splits, stages, sums, tickets,
    ):  # fmt: skip
        me = d.i32(d.thread())
        lane, warp = d.i32(me & 31), d.i32(me >> 5)
        wm, wn = d.i32((warp & 3) * 32), d.i32((warp >> 2) * 32)
        z = d.i32(0) if splits > 1 else d.i32(d.block_z())
        matrix, width = choose(z, a, a2, a3, m, batch, ratio2, ratio3, table, tiles, used, shared_rows)
        row0 = d.i32(d.block_x() * ROWS)
        lists = d.shared()
        total = d.cuda.local.array(32, d.f32)
        for i in range(32):
            total[i] = d.f32(0)
        low, high, weights = d.cuda.local.array(16, d.f32), d.cuda.local.array(8, d.f32), d.cuda.local.array(8, d.i32)
        j0, end = d.i32(0), groups
        if splits > 1:
            j0 = d.i32(d.block_z() * stages * GROUPS)
            end = min(groups, d.i32(j0 + stages * GROUPS))
        # columns' bytes: a thread copies a piece of two columns; their scales: those of a group of one
        c, part = d.i32(me >> 3), d.i32(me & 7)
        bytes_to = d.once(lists + at_right + c * DEEP + (part ^ (c & 7)) * 16)
        bytes_of = d.i32(lists + 4 * c)
        piece = x + part * 16
        r, part = d.i32(me >> 2), d.i32(me & 3)
        scales_of = d.i32(lists + 4 * r)
        scales_to = d.once(lists + at_right_scales + part * group_right + r * wide_right)
        scales_at = scales + part * 8
        if not halves:
            scales_at += d.sld_i32(scales_of) * d.i64(step >> 2)
        # rows: a thread copies half of one, and unpacks a group of two; scales of rows that a thread multiplies lie side by side
        row = matrix + min(row0 + (me >> 1), n - 1) * a1
        row_end = d.shr(d.i32(groups * block_bytes), 1 + stages_each)
        slot = d.i32(lists + at_blocks + r * row_bytes)
        aligned = d.i32(d.i32(matrix) + (row0 + r) * d.i32(a1))
        to = d.once(lists + at_left + r * DEEP + ((2 * part) ^ (r & 7)) * 16)
        to_scales = d.once(
            lists + at_left_scales + part * group_left + ((r & 32) + (r & 7) * 4 + ((r >> 3) & 3)) * wide
        )
        # what a warp multiplies
        from_left = d.once(lists + at_left + (wm + (lane & 15)) * DEEP + ((lane >> 4) ^ (lane & 7)) * 16)
        from_right = d.once(
            lists + at_right + (wn + (lane & 7) + (lane >> 4) * 8) * DEEP + (((lane >> 3) & 1) ^ (lane & 7)) * 16
        )
        from_left_scales = d.once(lists + at_left_scales + (wm + (lane >> 2) * 4) * wide)
        from_right_scales = d.once(lists + at_right_scales + (wn + (lane & 3) * 2) * wide_right)
        if width > 0:
            copy(row, j0, row_end, lists + at_blocks, me)
            d.cp_async_commit()
        while j0 < end and width > 0:
            d.cp_async_wait()
            d.barrier()  # blocks are there, and the stage before is multiplied
            d.cp_async16(bytes_to, piece + d.sld_i32(bytes_of) * d.i64(step) + j0 * 32)
            d.cp_async16(bytes_to + 32 * DEEP, piece + d.sld_i32(bytes_of + 4 * 32) * d.i64(step) + j0 * 32)
            if halves:
                column = d.sld_i32(scales_of)
                scales_here = scales_at + column * d.i64(step >> 2) + j0 * 8
            else:
                scales_here = scales_at + j0 * 8
            if halves and minimum:
                scale, total_of = d.ld_f32x2(scales_here)
                u0, u1, u2, u3 = d.ld_i32x4(x + column * d.i64(step) + (j0 + part) * 32)
                s = d.dp4a(ones, u3, d.dp4a(ones, u2, d.dp4a(ones, u1, d.dp4a(ones, u0, 0))))
                part_of = scale * d.f32(s)
                d.sst_f32x4(scales_to, scale, part_of, total_of - part_of, d.f32(0))
            elif minimum:
                d.cp_async8(scales_to, scales_here)
            else:
                d.cp_async4(scales_to, scales_here)
            d.cp_async_commit()
            shift = d.i32((aligned + d.shr(j0, 1 + stages_each) * block_bytes) & 15)
            more = d.i32(0)
            while more < 2:
                j = d.i32((j0 + part) & (GROUPS * stages_each - 1))
                at = d.i32(slot + more * (64 * row_bytes) + shift)
                q0, q1, q2, q3, q4, q5, q6, q7, d0, m0, d1, m1 = twelve(at, j, codebook)
                if ends_inside and j0 + part >= groups:
                    d0 = m0 = d1 = m1 = d.f32(0)
                keep(
                    to + more * (64 * DEEP), to_scales + more * (64 * wide),
                    q0, q1, q2, q3, q4, q5, q6, q7, d0, m0, d1, m1,
                )  # fmt: skip
                more = d.i32(more + 1)
            d.cp_async_wait()
            d.barrier()  # the stage is there, and all blocks are unpacked
            j0 = d.i32(j0 + GROUPS)
            if j0 < end and j0 & (GROUPS * at_once - 1) == 0:
                copy(row, j0, row_end, lists + at_blocks, me)
                d.cp_async_commit()
            # more groups at once take more registers than two blocks a multiprocessor have
            k, many = d.i32(0), d.i32(min(GROUPS, end - j0 + GROUPS))
            while k < many:
                multiply(total, low, high, weights, from_left, from_right, from_left_scales, from_right_scales, k)
                if pair:
                    multiply(
                        total, low, high, weights, from_left, from_right, from_left_scales, from_right_scales, k + 1
                    )
                k = d.i32(k + (2 if pair else 1))
        if add(total, splits, sums, tickets, d.shared() + LISTS):
            store(z, total, y, y1, y2, y3, batch, table, used, row0 + wm, wn, n, width, lane)

    return kernel


class FloatsArgs(NamedTuple):
    product: Product
    b: Rows
    k: i32
    table: experts.Table
    split: Split


def floats(name):
    """F16 or BF16 with F32, which is rounded to the same type."""
    from pyggml.kernels.cuda import device as d

    store, choose, add = storing(), columns(), adding()
    brain = name == "BF16"

    @d.inline
    def pack(u, v):
        return d.pack_bf16(u, v) if brain else d.pack_f16(u, v)

    @d.inline
    def product(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        if brain:
            return d.mma_bf16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)
        return d.mma_f16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)

    @entry(FloatsArgs, THREADS, blocks=2)
    def kernel(
        y, y1, y2, y3, a, a1, a2, a3, n, m, batch, ratio2, ratio3, b, b1, b2, b3, k, table, tiles, used,
        shared_rows, splits, stages, sums, tickets,
    ):  # fmt: skip
        me = d.i32(d.thread())
        lane, warp = d.i32(me & 31), d.i32(me >> 5)
        wm, wn = d.i32((warp & 3) * 32), d.i32((warp >> 2) * 32)
        z = d.i32(0) if splits > 1 else d.i32(d.block_z())
        matrix, width = choose(z, a, a2, a3, m, batch, ratio2, ratio3, table, tiles, used, shared_rows)
        row0 = d.i32(d.block_x() * ROWS)
        i3 = d.udiv(z, batch)
        others = b + (z - i3 * batch) * b2 + i3 * b3
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
        r = d.i32(me >> 3)
        to = d.once(lists + LISTS + r * STRIDE + part * 16)
        from_left = d.once(lists + LISTS + (wm + (lane & 15)) * STRIDE + (lane >> 4) * 16)
        from_right = d.once(
            lists + LISTS + LEFT + (wn + (lane & 7) + (lane >> 4) * 8) * STRIDE + ((lane >> 3) & 1) * 16
        )
        k0, at = d.i32(0), d.i32(0)
        if splits > 1:
            k0 = d.i32(d.block_z() * stages * 64)
            k = min(k, d.i32(k0 + stages * 64))
        begin = k0
        k0 = d.i32(k0 - 64)
        while k0 < k and width > 0:
            # the next stage is on its way, columns in registers, while one is multiplied
            inside = k0 + 64 + part * 8 < k
            for i in range(4):
                if inside:
                    line = matrix + min(row0 + r + 32 * i, n - 1) * a1
                    d.cp_async16(to + at + 32 * i * STRIDE, line + (k0 + 64 + part * 8) * 2)
                else:
                    d.sst_i32x4(to + at + 32 * i * STRIDE, 0, 0, 0, 0)
            d.cp_async_commit()
            for i in range(2):
                for e in range(8):
                    ahead[8 * i + e] = d.f32(0)
                if inside:
                    v = lines[i] + (k0 + 64 + part * 8) * 4
                    ahead[8 * i], ahead[8 * i + 1], ahead[8 * i + 2], ahead[8 * i + 3] = d.ld_f32x4(v)
                    ahead[8 * i + 4], ahead[8 * i + 5], ahead[8 * i + 6], ahead[8 * i + 7] = d.ld_f32x4(v + 16)
            if k0 >= begin:
                left = d.i32(from_left + LEFT + RIGHT - at)
                right = d.i32(from_right + LEFT + RIGHT - at)
                for kk in range(4):
                    for i in range(2):
                        q0, q1, q2, q3 = d.ldmatrix_x4(left + 16 * i * STRIDE + 32 * kk)
                        for jj in range(2):
                            w0, w1, w2, w3 = d.ldmatrix_x4(right + 16 * jj * STRIDE + 32 * kk)
                            t = (i * 4 + jj * 2) * 4
                            total[t], total[t + 1], total[t + 2], total[t + 3] = product(
                                q0, q1, q2, q3, w0, w1, total[t], total[t + 1], total[t + 2], total[t + 3]
                            )
                            total[t + 4], total[t + 5], total[t + 6], total[t + 7] = product(
                                q0, q1, q2, q3, w2, w3, total[t + 4], total[t + 5], total[t + 6], total[t + 7]
                            )
            for i in range(2):
                w0, w1 = pack(ahead[8 * i], ahead[8 * i + 1]), pack(ahead[8 * i + 2], ahead[8 * i + 3])
                w2, w3 = pack(ahead[8 * i + 4], ahead[8 * i + 5]), pack(ahead[8 * i + 6], ahead[8 * i + 7])
                d.sst_i32x4(to + at + LEFT + 32 * i * STRIDE, w0, w1, w2, w3)
            d.cp_async_wait()
            d.barrier()
            at = d.i32(LEFT + RIGHT - at)
            k0 = d.i32(k0 + 64)
        if add(total, splits, sums, tickets, d.shared() + LISTS):
            store(z, total, y, y1, y2, y3, batch, table, used, row0 + wm, wn, n, width, lane)

    return kernel
