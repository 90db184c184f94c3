"""ARGMAX, SUM, SUM_ROWS, MEAN: one block of threads a row, or for all. CUMSUM: a warp a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F32, FLOATS, I32, KINDS, blocks, refuse_types, source
from pyggml.kernels.cuda.norm import threads_for
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

WARPS = 4
AREA = 128
"""Bytes of shared memory that one meeting of a block's warps takes."""


def why_not(node: Tensor) -> str | None:
    if node.op == Op.SUM:
        return refuse_types(FLOATS, node, source(node, 0))
    return refuse_types([F32], source(node, 0)) or refuse_types([I32 if node.op == Op.ARGMAX else F32], node)


def lower(builder: Builder, node: Tensor) -> None:
    a = source(node, 0)
    if node.op in (Op.SUM_ROWS, Op.MEAN):
        over = float(a.ne[0]) if node.op == Op.MEAN else 1.0
        rows = SumRowsArgs(y=place(node), a=place(a), n=extents(a.ne), over=over)
        builder.launch(Spec("reduce", "sum_rows"), (a.nrows,), threads_for(a.ne[0]), rows, AREA)
        return
    if node.op == Op.SUM:
        whole = SumAllArgs(y=node.data, a=place(a), n=extents(a.ne), total=a.nelements, kind=KINDS[a.type])
        builder.launch(Spec("reduce", "sum_all"), (1,), threads_for(a.nelements), whole, AREA)
        return
    if node.op == Op.CUMSUM:
        running = CumsumArgs(y=place(node), a=place(a), n=extents(a.ne), rows=a.nrows)
        builder.launch(Spec("reduce", "cumsum"), (blocks(a.nrows, WARPS),), 32 * WARPS, running)
        return
    args = ArgmaxArgs(y=node.data, y0=node.nb[0], a=a.data, a0=a.nb[0], a1=a.nb[1], n=a.ne[0])
    builder.launch(Spec("reduce", "argmax"), (a.ne[1],), threads_for(a.ne[0]), args, 4 * AREA)


class ArgmaxArgs(NamedTuple):
    y: i64
    y0: i64
    a: i64
    a0: i64
    a1: i64
    n: i32


def argmax():
    """Of equal elements the last. A NaN clears what is the largest so far, but not its place: what counts lies behind the
    last NaN that has a number behind it."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def most(n, area):
        """The largest i32 of the block, in all threads."""
        n = max(n, d.shuffle_xor_i32(n, 16))
        n = max(n, d.shuffle_xor_i32(n, 8))
        n = max(n, d.shuffle_xor_i32(n, 4))
        n = max(n, d.shuffle_xor_i32(n, 2))
        n = max(n, d.shuffle_xor_i32(n, 1))
        me = d.thread()
        if me & 31 == 0:
            d.sst_i32(area + (me >> 5) * 4, n)
        d.barrier()
        found = d.i32(-1)
        for i in range(32):
            if i < d.threads() >> 5:
                found = max(found, d.sld_i32(area + 4 * i))
        return found

    @entry(ArgmaxArgs)
    def kernel(y, y0, a, a0, a1, n):
        x = a + d.block_x() * a1
        end, lost, best = d.i32(-1), d.i32(-1), d.i32(-1)
        i = d.i32(d.thread())
        while i < n:
            value = d.ld_f32(x + i * a0)
            if value == value:
                end = i
            i = d.i32(i + d.threads())
        end = most(end, d.shared())
        i = d.i32(d.thread())
        while i < end:
            value = d.ld_f32(x + i * a0)
            if value != value:
                lost = i
            i = d.i32(i + d.threads())
        lost = most(lost, d.shared() + AREA)
        top = d.bits_float(-8388608)  # -inf
        i = d.i32(d.thread())
        while i <= end:
            if i > lost:
                value = d.ld_f32(x + i * a0)
                if value >= top:
                    top, best = value, i
            i = d.i32(i + d.threads())
        whole = d.block_max(top, d.shared() + 2 * AREA)
        if top != whole:
            best = d.i32(-1)
        best = most(best, d.shared() + 3 * AREA)
        if d.thread() == 0:
            d.st_i32(y + d.block_x() * y0, max(best, 0))

    return kernel


class SumRowsArgs(NamedTuple):
    """`over`: what a sum is divided by."""

    y: Place
    a: Place
    n: Extents
    over: f32


def sum_rows():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import places

    place = places()

    @entry(SumRowsArgs)
    def kernel(y, y0, y1, y2, y3, a, a0, a1, a2, a3, n0, n1, n2, over):
        _, i1, i2, i3 = place(d.i32(d.block_x()), 1, n1, n2)
        x = a + i1 * a1 + i2 * a2 + i3 * a3
        total = d.f32(0)
        i = d.i32(d.thread())
        while i < n0:
            total = total + d.ld_f32(x + i * a0)
            i = d.i32(i + d.threads())
        total = d.block_sum(total, d.shared())
        if d.thread() == 0:
            d.st_f32(y + i1 * y1 + i2 * y2 + i3 * y3, total / over)

    return kernel


class SumAllArgs(NamedTuple):
    y: i64
    a: Place
    n: Extents
    total: i32
    kind: i32


def sum_all():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    load, store = access()
    place = places()

    @entry(SumAllArgs)
    def kernel(y, a, a0, a1, a2, a3, n0, n1, n2, total, kind):
        found = d.f32(0)
        i = d.i32(d.thread())
        while i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            found = found + load(a + i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3, kind)
            i = d.i32(i + d.threads())
        found = d.block_sum(found, d.shared())
        if d.thread() == 0:
            store(y, kind, found)

    return kernel


class CumsumArgs(NamedTuple):
    y: Place
    a: Place
    n: Extents
    rows: i32


def cumsum():
    """32 elements of a row at a time; what came before them is carried on."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import places

    place = places()

    @entry(CumsumArgs, 32 * WARPS)
    def kernel(y, y0, y1, y2, y3, a, a0, a1, a2, a3, n0, n1, n2, rows):
        lane = d.i32(d.thread() & 31)
        row = d.i32(d.block_x() * WARPS + (d.thread() >> 5))
        if row < rows:
            _, i1, i2, i3 = place(row, 1, n1, n2)
            x = a + i1 * a1 + i2 * a2 + i3 * a3
            z = y + i1 * y1 + i2 * y2 + i3 * y3
            before, first = d.f32(0), d.i32(0)
            while first < n0:
                i = d.i32(first + lane)
                total = d.f32(0)
                if i < n0:
                    total = d.ld_f32(x + i * a0)
                for k in range(5):
                    left = d.shuffle_f32(total, (lane - (1 << k)) & 31)
                    if lane >= 1 << k:
                        total = left + total
                total = before + total
                if i < n0:
                    d.st_f32(z + i * y0, total)
                before = d.shuffle_f32(total, 31)
                first = d.i32(first + 32)

    return kernel
