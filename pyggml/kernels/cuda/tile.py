"""MUL_MAT of anything with anything: values are read one by one, as f32, and multiplied in tiles of 64 x 64.

The path for strides, addresses and GPUs that the faster kernels do not take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda import experts
from pyggml.kernels.cuda.blocks import reader
from pyggml.kernels.cuda.launch_args import Place, entry, place
from pyggml.kernels.cuda.layout import KINDS, THREADS, blocks
from pyggml.kernels.cuda.spec import Spec, i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

TILE = 64
DEEP = 16
STEP = TILE + 1
"""f32 from one k to the next in shared memory; odd, so that neighbours in k lie in different banks."""


def lower(builder: Builder, node: Tensor, a: Tensor, b: Tensor) -> None:
    family, (kind, table) = reader(builder, a.type)
    batches, columns = experts.batches(node), experts.columns(node)
    spec = Spec("tile", "tile", (family,))
    args = TileArgs(
        y=place(node), a=place(a), ka=kind, table=table, b=place(b), kb=KINDS[b.type], n=a.ne[1], m=columns, k=a.ne[0],
        batch=b.ne[2], ratio2=max(1, b.ne[2] // a.ne[2]), ratio3=b.ne[3] // a.ne[3], batches=batches,
        lists=experts.lists(builder, node),
    )  # fmt: skip
    grid = (blocks(a.ne[1], TILE), min(blocks(columns, TILE), 65535), min(batches, 65535))
    builder.launch(spec, grid, THREADS, args, 2 * 4 * DEEP * STEP)


class TileArgs(NamedTuple):
    y: Place
    a: Place
    ka: i32
    table: i64
    b: Place
    kb: i32
    n: i32
    m: i32
    k: i32
    batch: i32
    ratio2: i32
    ratio3: i32
    batches: i32
    lists: experts.Lists


def multiplying():
    """-> f(left, right, i0, j0, total): adds DEEP products to each of 4 x 4 sums, rows i0 ... of the left tile in shared memory by
    rows j0 ... of the right one."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def multiply(left, right, i0, j0, total):
        u, w = d.cuda.local.array(4, d.f32), d.cuda.local.array(4, d.f32)
        for k in range(DEEP):
            for i in range(4):
                u[i] = d.sld_f32(left + 4 * (k * STEP + i0 + i))
                w[i] = d.sld_f32(right + 4 * (k * STEP + j0 + i))
            for i in range(4):
                for j in range(4):
                    total[4 * i + j] = d.fma(u[i], w[j], total[4 * i + j])

    return multiply


def tile(family):
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.blocks import element
    from pyggml.kernels.cuda.convert import access
    from pyggml.kernels.cuda.experts import chosen

    load, _ = access()
    value = element(family)
    choose, multiply = chosen(), multiplying()

    @entry(TileArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, a, a0, a1, a2, a3, ka, table, b, b0, b1, b2, b3, kb, n, m, k, batch, ratio2, ratio3,
        batches, ids, ids0, ids1, used, shared_rows, limit, number, status,
    ):  # fmt: skip
        me = d.i32(d.thread())
        left = d.shared()
        right = d.i32(left + 4 * DEEP * STEP)
        row, column = d.i32((me & 15) * 4), d.i32((me >> 4) * 4)
        total = d.cuda.local.array(16, d.f32)
        first = d.i32(d.block_x() * TILE)
        z = d.i32(d.block_z())
        while z < batches:
            i3 = d.udiv(z, batch)
            i2 = d.i32(z - i3 * batch)
            matrix = a + d.udiv(i2, ratio2) * a2 + d.udiv(i3, ratio3) * a3
            others = b + i2 * b2 + i3 * b3
            to = y + i2 * y2 + i3 * y3
            width = m
            if ids != 0:
                which, line, slot, token = choose(z, ids, ids0, ids1, used, shared_rows, limit, number, status)
                matrix = a + max(which, 0) * a2
                others = b + line * b1 + token * b2
                to = y + slot * y1 + token * y2
                if which < 0:
                    width = d.i32(0)
            c0 = d.i32(d.block_y() * TILE)
            while c0 < width:
                for i in range(16):
                    total[i] = d.f32(0)
                k0 = d.i32(0)
                while k0 < k:
                    for i in range(4):
                        which = d.i32(me + 256 * i)
                        kk, r = d.i32(which & 15), d.i32(which >> 4)
                        x, v = d.f32(0), d.f32(0)
                        if k0 + kk < k:
                            if first + r < n:
                                x = value(matrix + (first + r) * a1, d.i32(k0 + kk), a0, ka, table)
                            if c0 + r < width:
                                v = load(others + (c0 + r) * b1 + (k0 + kk) * b0, kb)
                        d.sst_f32(left + 4 * (kk * STEP + r), x)
                        d.sst_f32(right + 4 * (kk * STEP + r), v)
                    d.barrier()
                    multiply(left, right, row, column, total)
                    d.barrier()
                    k0 = d.i32(k0 + DEEP)
                for i in range(4):
                    for j in range(4):
                        if first + row + i < n and c0 + column + j < width:
                            at = to + (first + row + i) * y0 + (c0 + column + j) * y1
                            d.st_f32(at, total[4 * i + j])
                c0 = d.i32(c0 + d.blocks_y() * TILE)
            z = d.i32(z + d.blocks_z())

    return kernel
