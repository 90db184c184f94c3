"""Which matrix a block of threads multiplies with: by its place in the batch, or by a number that a list gives.

The part of products that MUL_MAT_ID adds to MUL_MAT. With few entries of the lists each is a product of its own; with
many they are sorted by matrix first, so that each matrix is read once a tile of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import source
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


class Lists(NamedTuple):
    """The lists' address (0: there are none) and strides, numbers a list, rows of b that they share, how many matrices there
    are, and where a number out of range is told."""

    ids: i64 = 0
    ids0: i64 = 0
    ids1: i64 = 0
    used: i32 = 0
    shared_rows: i32 = 0
    limit: i32 = 0
    number: i32 = 0
    status: i64 = 0


def lists(builder: Builder, node: Tensor) -> Lists:
    if node.op != Op.MUL_MAT_ID:
        return Lists()
    a, b, ids = (source(node, i) for i in range(3))
    return Lists(ids.data, *ids.nb[:2], ids.ne[0], b.ne[1], a.ne[2], builder.number + 1, builder.status())


def batches(node: Tensor) -> int:
    """How many products with one matrix there are."""
    b = source(node, 1)
    return node.ne[1] * node.ne[2] if node.op == Op.MUL_MAT_ID else b.ne[2] * b.ne[3]


def columns(node: Tensor) -> int:
    """Columns of each."""
    return 1 if node.op == Op.MUL_MAT_ID else source(node, 1).ne[1]


def chosen():
    """-> f(z, ids, ...): matrix, row of b, slot, token of list entry z; -1 as the matrix where the number is out of range."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def choose(z, ids, ids0, ids1, used, shared, limit, number, status):
        token = d.udiv(z, used)
        slot = d.i32(z - token * used)
        which = d.ld_i32(ids + slot * ids0 + token * ids1)
        if which < 0 or which >= limit:
            if d.thread() == 0:
                d.st_i32x4(status, number, which, which >> 31, limit)
            which = d.i32(-1)
        return which, d.urem(slot, shared), slot, token

    return choose


MOST = 1024
"""So many matrices are sorted for; a thread each."""


class Table(NamedTuple):
    """The entries of the lists sorted by matrix and cut into tiles: as arguments.

    In memory, i32: how many tiles there are; of each of `tiles` its matrix, its first place in the order, the end of its
    matrix' places; the order: numbers of entries (list x used + slot).
    """

    table: i64 = 0
    tiles: i32 = 0
    used: i32 = 0
    shared_rows: i32 = 1


def entries(node: Tensor) -> int:
    ids = source(node, 2)
    return ids.ne[0] * ids.ne[1]


def sorted_entries(builder: Builder, node: Tensor, columns: int) -> Table:
    """Made once for all products with these lists; `columns`: of a tile."""
    a, b, ids = (source(node, i) for i in range(3))
    key = "experts", ids.data, ids.ne, ids.nb, a.ne[2], b.ne[1], columns
    found: Table | None = builder.remembered(key)
    if found is not None:
        return found
    n = entries(node)
    tiles = n // columns + a.ne[2]
    work = builder.scratch(4 * (1 + 3 * tiles + n))
    made = Table(work.at(), tiles, ids.ne[0], b.ne[1])
    args = TableArgs(
        ids=ids.data, ids0=ids.nb[0], ids1=ids.nb[1], used=ids.ne[0], n=n, limit=a.ne[2], tiles=tiles, columns=columns,
        to=work.at(), number=builder.number + 1, status=builder.status(),
    )  # fmt: skip
    builder.launch(Spec("experts", "table"), (1,), MOST, args, 4 * MOST)
    builder.remember(key, made, ids)
    return made


class TableArgs(NamedTuple):
    ids: i64
    ids0: i64
    ids1: i64
    used: i32
    n: i32
    limit: i32
    tiles: i32
    columns: i32
    to: i64
    number: i32
    status: i64


def table():
    """All threads walk the entries, a place in the order is drawn from its matrix' counter: entries of a matrix are in no order, and
    no result depends on it. A matrix that is not there has entries nowhere."""
    from pyggml.kernels.cuda import device as d

    @entry(TableArgs, MOST)
    def kernel(ids, ids0, ids1, used, n, limit, tiles, columns, to, number, status):
        me = d.i32(d.thread())
        counts = d.shared()
        d.sst_i32(counts + 4 * me, 0)
        d.barrier()
        z = me
        while z < n:
            token = d.udiv(z, used)
            which = d.ld_i32(ids + (z - token * used) * ids0 + token * ids1)
            if which < 0 or which >= limit:
                d.st_i32x4(status, number, which, which >> 31, limit)
            else:
                d.sadd_i32(counts + 4 * which, 1)
            z = d.i32(z + d.threads())
        d.barrier()
        count = d.sld_i32(counts + 4 * me)
        first, tile, e = d.i32(0), d.i32(0), d.i32(0)
        while e < me:
            before = d.sld_i32(counts + 4 * e)
            first = d.i32(first + before)
            tile = d.i32(tile + d.udiv(before + columns - 1, columns))
            e = d.i32(e + 1)
        if me < limit:
            begin = d.i32(0)
            while begin < count:
                d.st_i32(to + 4 + 4 * tile, me)
                d.st_i32(to + 4 + 4 * (tiles + tile), first + begin)
                d.st_i32(to + 4 + 4 * (2 * tiles + tile), first + count)
                tile = d.i32(tile + 1)
                begin = d.i32(begin + columns)
            if me == limit - 1:
                d.st_i32(to, tile)
        d.barrier()
        d.sst_i32(counts + 4 * me, first)
        d.barrier()
        order = to + 4 + 12 * d.i64(tiles)
        z = me
        while z < n:
            token = d.udiv(z, used)
            which = d.ld_i32(ids + (z - token * used) * ids0 + token * ids1)
            if which >= 0 and which < limit:
                d.st_i32(order + 4 * d.sadd_i32(counts + 4 * which, 1), z)
            z = d.i32(z + d.threads())

    return kernel


def tile_of():
    """-> f(table, tiles, y): a tile's matrix, its places in memory from the first to the end; none: an end of 0."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def tile(table, tiles, number):
        matrix, first, end = d.i32(0), d.i32(0), d.i32(0)
        if number < d.ld_i32(table):
            matrix = d.ld_i32(table + 4 + 4 * number)
            first = d.ld_i32(table + 4 + 4 * (tiles + number))
            end = d.ld_i32(table + 4 + 4 * (2 * tiles + number))
        return matrix, first, end

    return tile
