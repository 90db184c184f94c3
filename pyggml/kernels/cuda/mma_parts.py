"""What the products on tensor cores share: the size of a block's tile, which columns it makes, where they go, and how blocks that
share k add up what they have."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.layout import THREADS
from pyggml.kernels.cuda.spec import i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder

ROWS, COLUMNS = 128, 64
LISTS = 8 * COLUMNS
"""Bytes for what the columns are: row of b, number."""
RESULTS = 32
"""Of a thread."""
MOST_SPLITS = 8
STAGES = 2
"""Of a block at least, so that it is worth a launch's end."""


class Split(NamedTuple):
    """Blocks that share k: how many, stages each, work memory and the tickets of their tiles."""

    splits: i32 = 1
    stages: i32 = 0
    sums: i64 = 0
    tickets: i64 = 0


def split_of(builder: Builder, grid: tuple[int, int, int], stages: int) -> Split:
    """For a grid that leaves half of the GPU idle, of products with so many stages of k."""
    tiles = grid[0] * grid[1]
    splits = min(MOST_SPLITS, builder.multiprocessors // tiles, stages // STAGES)
    if grid[2] > 1 or splits < 2:
        return Split(stages=stages)
    each = -(-stages // splits)
    splits = -(-stages // each)
    work = builder.scratch(tiles * splits * 4 * RESULTS * THREADS)
    return Split(splits, each, work.at(), builder.counters(tiles))


def adding():
    """-> f(total, splits, sums, tickets, area): whether this block is to store what all that share its tile have added up to, which
    `total` is then."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.tickets import last

    is_last = last()

    @d.inline
    def add(total, splits, sums, tickets, area):
        stores = True
        if splits > 1:
            tile = d.i64(d.block_y()) * d.blocks_x() + d.block_x()
            step = RESULTS * THREADS * 4
            first = sums + tile * splits * step + d.thread() * 4
            for i in range(RESULTS):
                d.st_f32(first + d.block_z() * step + i * (THREADS * 4), total[i])
            stores = is_last(tickets + tile * 4, splits, area)
            if stores:
                for i in range(RESULTS):
                    total[i] = d.f32(0)
                part = d.i32(0)
                while part < splits:
                    for i in range(RESULTS):
                        total[i] = total[i] + d.ld_f32(first + part * step + i * (THREADS * 4))
                    part = d.i32(part + 1)
        return stores

    return add


def columns():
    """-> f(z, ...): which columns of batch z a block makes: notes each one's row of b and its number in shared memory; the matrix, the
    first column, how many."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.experts import tile_of

    tile = tile_of()

    @d.inline
    def choose(z, a, a2, a3, m, batch, ratio2, ratio3, table, tiles, used, shared_rows):
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

    return choose


def storing():
    """-> f: a warp's 32 x 32 results to where they belong."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def store(z, total, y, y1, y2, y3, batch, table, used, row0, column0, n, width, lane):
        i3 = d.udiv(z, batch)
        whole = y + (z - i3 * batch) * y2 + i3 * y3
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
