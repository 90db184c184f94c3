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
from pyggml.kernels.cuda.mma_parts import COLUMNS, LISTS, ROWS, Split, adding, columns, split_of, storing
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.kernels.cuda.unpack import ALIGNMENT, HALVES, UNPACKED, has_minimum
from pyggml.kernels.cuda.unpack_codebook import codebook_of
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

OLDEST = (8, 0)
DEEP = 128
"""Bytes of k at a time: 128 values of blocks, 64 of F16."""
STRIDE = DEEP + 16
"""From row to row in shared memory: rows that are read together lie in different banks."""
GROUPS = DEEP // 32
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
        split=split,
    )
    builder.launch(Spec("mma", "integers", (a.type.name,)), grid, THREADS, packed, shared)


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
    """Blocks of integers with activations of bytes."""
    from pyggml.dtypes import GGMLType
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.unpack import unpack

    group, store, choose, add = unpack(name, signed=True), storing(), columns(), adding()
    halves, minimum = GGMLType[name] in HALVES, has_minimum(GGMLType[name], signed=True)
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

    @d.inline
    def exact(c):
        """A sum that began at EXACT as a float: its bits are those of 1.5 x 2^23 plus the sum, which is below 2^22."""
        return d.bits_float(c) - d.f32(12582912)

    @d.inline
    def multiply(total, low, high, left, right, left_scales, right_scales, wm, wn, lane, k):
        """Group k of the stage: 32 x 32 results of a warp."""
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
                        c0, c1, c2, c3 = d.mma_s8_k16(q0, q1, v0, EXACT, EXACT, EXACT, EXACT)
                        e0, e1, e2, e3 = d.mma_s8_k16(q2, q3, v1, EXACT, EXACT, EXACT, EXACT)
                        f0 = d.fma(low[0], exact(c0), low[2] * exact(e0))
                        f1 = d.fma(low[0], exact(c1), low[2] * exact(e1))
                        f2 = d.fma(low[4], exact(c2), low[6] * exact(e2))
                        f3 = d.fma(low[4], exact(c3), low[6] * exact(e3))
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
                        c0, c1, c2, c3 = d.mma_s8(q0, q1, q2, q3, v0, v1, EXACT, EXACT, EXACT, EXACT)
                        total[t] = d.fma(exact(c0), low[0] * high[0], total[t])
                        total[t + 1] = d.fma(exact(c1), low[0] * high[4], total[t + 1])
                        total[t + 2] = d.fma(exact(c2), low[4] * high[0], total[t + 2])
                        total[t + 3] = d.fma(exact(c3), low[4] * high[4], total[t + 3])
                        if minimum:
                            total[t] = d.fma(low[1], high[1], total[t])
                            total[t + 1] = d.fma(low[1], high[5], total[t + 1])
                            total[t + 2] = d.fma(low[5], high[1], total[t + 2])
                            total[t + 3] = d.fma(low[5], high[5], total[t + 3])

    @entry(IntegersArgs, THREADS, blocks=1 if halves else 2)  # with two scales a group 128 registers are too few
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
        left = d.i32(lists + LISTS)
        right = d.i32(left + LEFT)
        left_scales = d.i32(right + RIGHT)
        right_scales = d.i32(left_scales + ROWS * GROUPS * wide)
        total = d.cuda.local.array(32, d.f32)
        for i in range(32):
            total[i] = d.f32(0)
        low, high = d.cuda.local.array(8, d.f32), d.cuda.local.array(8, d.f32)
        j0, end = d.i32(0), groups
        if splits > 1:
            j0 = d.i32(d.block_z() * stages * GROUPS)
            end = min(groups, d.i32(j0 + stages * GROUPS))
        while j0 < end and width > 0:
            for i in range(2):  # columns' bytes
                u = d.i32(me + 256 * i)
                c, part = d.i32(u >> 3), d.i32(u & 7)
                column = d.sld_i32(lists + 4 * c)
                d.cp_async16(right + c * STRIDE + part * 16, x + column * d.i64(step) + j0 * 32 + part * 16)
            d.cp_async_commit()
            c, part = d.i32(me >> 2), d.i32(me & 3)
            column = d.sld_i32(lists + 4 * c)
            scale, total_of = d.ld_f32x2(scales + column * d.i64(step >> 2) + (j0 + part) * 8)
            if halves and not minimum:
                d.sst_f32x4(right_scales + me * 16, scale, d.f32(0), d.f32(0), d.f32(0))
            elif halves:
                at = x + column * d.i64(step) + (j0 + part) * 32
                u0, u1, u2, u3 = d.ld_i32x4(at)
                s = d.dp4a(ones, u3, d.dp4a(ones, u2, d.dp4a(ones, u1, d.dp4a(ones, u0, 0))))
                part_of = scale * d.f32(s)
                d.sst_f32x4(right_scales + me * 16, scale, part_of, total_of - part_of, d.f32(0))
            else:
                d.sst_f32x2(right_scales + me * 8, scale, total_of)
            r, last, inside = d.i32(me >> 2), d.i32(min(j0 + part, groups - 1)), j0 + part < groups
            for more in range(2):
                q0, q1, q2, q3, q4, q5, q6, q7, d0, m0, d1, m1 = twelve(
                    matrix + min(row0 + r + 64 * more, n - 1) * a1, last, codebook
                )
                to = left + (r + 64 * more) * STRIDE + part * 32
                keep(inside, to, left_scales + (me + 256 * more) * wide, q0, q1, q2, q3, q4, q5, q6, q7, d0, m0, d1, m1)
            d.cp_async_wait()
            d.barrier()
            k = d.i32(0)
            while k < GROUPS:  # two at once take more registers than two blocks a multiprocessor have
                multiply(total, low, high, left, right, left_scales, right_scales, wm, wn, lane, k)
                k = d.i32(k + 1)
            d.barrier()
            j0 = d.i32(j0 + GROUPS)
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
        k0, at = d.i32(0), d.i32(0)
        if splits > 1:
            k0 = d.i32(d.block_z() * stages * 64)
            k = min(k, d.i32(k0 + stages * 64))
        begin = k0
        k0 = d.i32(k0 - 64)
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
            if k0 >= begin:
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
        if add(total, splits, sums, tickets, d.shared() + LISTS):
            store(z, total, y, y1, y2, y3, batch, table, used, row0 + wm, wn, n, width, lane)

    return kernel
