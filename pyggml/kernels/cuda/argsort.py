"""ARGSORT, TOP_K: numbers of elements in the order of their values.

Of equal values the lower number is first, and NaNs are last: an element is sorted by one integer made of value and number.
Short rows: each thread counts how many elements are before its own. Long ones: a block of threads sorts a row in work
memory (bitonic).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Place, entry, place
from pyggml.kernels.cuda.layout import F32, I32, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.ops import Op, SortOrder

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

SHORT = 512
THREADS = 128
SORTERS = 1024
LONGEST = 1 << 24


def why_not(node: Tensor) -> str | None:
    a = source(node, 0)
    if a.ne[0] > LONGEST or a.nrows > 2**31 - 1:
        return f"{a.nrows} rows of {a.ne[0]} elements, at most {2**31 - 1} of {LONGEST} are supported"
    return refuse_types([F32], a) or refuse_types([I32], node)


def lower(builder: Builder, node: Tensor) -> None:
    a = source(node, 0)
    down = int(node.op == Op.TOP_K or node.param_i32(0) == SortOrder.DESC)
    args = RanksArgs(
        y=place(node), a=place(a), n=a.ne[0], n1=a.ne[1], n2=a.ne[2], wanted=node.ne[0], down=down,
    )  # fmt: skip
    if a.ne[0] <= SHORT:
        builder.launch(Spec("argsort", "ranks"), (a.nrows, blocks(a.ne[0], THREADS)), THREADS, args)
        return
    room = 1 << (a.ne[0] - 1).bit_length()
    work = builder.scratch(8 * room * a.nrows)
    builder.launch(Spec("argsort", "sort"), (a.nrows,), SORTERS, SortArgs(args, work=work.at(), room=room))


def _order():
    """-> f(at, i, down): element i's place among others, as an integer that no other has."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def order(at, i, down):
        x = d.ld_f32(at)
        if down == 1:
            x = -x
        bits = d.float_bits(x + d.f32(0))  # -0 is as 0
        if x != x:
            bits = d.i32(0x7FFFFFFF)
        elif bits < 0:
            bits = d.i32(bits ^ 0x7FFFFFFF)
        return (d.i64(bits) << 32) | i

    return order


class RanksArgs(NamedTuple):
    y: Place
    a: Place
    n: i32
    n1: i32
    n2: i32
    wanted: i32
    down: i32


def ranks():
    from pyggml.kernels.cuda import device as d

    order = _order()

    @entry(RanksArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, a, a0, a1, a2, a3, n, n1, n2, wanted, down):
        row = d.block_x()
        above = d.udiv(row, n1)
        i1 = d.i32(row - above * n1)
        i3 = d.udiv(above, n2)
        i2 = d.i32(above - i3 * n2)
        x = a + i1 * a1 + i2 * a2 + i3 * a3
        i = d.i32(d.block_y() * THREADS + d.thread())
        if i < n:
            own = order(x + i * a0, i, down)
            rank, j = d.i32(0), d.i32(0)
            while j < n:
                if order(x + j * a0, j, down) < own:
                    rank = d.i32(rank + 1)
                j = d.i32(j + 1)
            if rank < wanted:
                d.st_i32(y + rank * y0 + i1 * y1 + i2 * y2 + i3 * y3, i)

    return kernel


class SortArgs(NamedTuple):
    ranks: RanksArgs
    work: i64
    room: i32


def sort():
    from pyggml.kernels.cuda import device as d

    order = _order()

    @entry(SortArgs, SORTERS)
    def kernel(y, y0, y1, y2, y3, a, a0, a1, a2, a3, n, n1, n2, wanted, down, work, room):
        row = d.block_x()
        above = d.udiv(row, n1)
        i1 = d.i32(row - above * n1)
        i3 = d.udiv(above, n2)
        i2 = d.i32(above - i3 * n2)
        x = a + i1 * a1 + i2 * a2 + i3 * a3
        own = work + d.i64(row) * room * 8
        i = d.i32(d.thread())
        while i < room:
            d.st_i64(own + i * 8, order(x + i * a0, i, down) if i < n else d.i64(0x7FFFFFFFFFFFFFFF))
            i = d.i32(i + SORTERS)
        d.barrier()
        run = d.i32(2)
        while run <= room:
            apart = d.i32(run >> 1)
            while apart > 0:
                i = d.i32(d.thread())
                while i < room:
                    other = i ^ apart
                    if other > i:
                        low, high = d.ld_i64(own + i * 8), d.ld_i64(own + other * 8)
                        if (low > high) == ((i & run) == 0):
                            d.st_i64(own + i * 8, high)
                            d.st_i64(own + other * 8, low)
                    i = d.i32(i + SORTERS)
                d.barrier()
                apart = d.i32(apart >> 1)
            run = d.i32(run << 1)
        i = d.i32(d.thread())
        while i < wanted:
            d.st_i32(y + i * y0 + i1 * y1 + i2 * y2 + i3 * y3, d.i32(d.ld_i64(own + i * 8)))
            i = d.i32(i + SORTERS)

    return kernel
