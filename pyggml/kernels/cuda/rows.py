"""GET_ROWS and SET_ROWS: rows chosen by number, which the kernels check."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda import encoders
from pyggml.kernels.cuda.blocks import READ, SIMPLE, reader
from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F16, F32, FLOATS, I32, KINDS, blocks, refuse, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

THREADS = 128


def why_not(node: Tensor) -> str | None:
    if node.op == Op.GET_ROWS:
        a = source(node, 0)
        if a.ne[1] == 0:
            return "the table has no rows"
        return refuse_types((*READ, I32), a) or refuse_types([F32, I32], node) or refuse(source(node, 1))
    return (
        refuse_types([F32, F16], source(node, 0)) or refuse_types((*FLOATS, *SIMPLE), node) or refuse(source(node, 1))
    )


def lower(builder: Builder, node: Tensor) -> None:
    (get if node.op == Op.GET_ROWS else put)(builder, node)


def get(builder: Builder, node: Tensor) -> None:
    a, rows = source(node, 0), source(node, 1)
    family, (kind, table) = ("floats", (KINDS[I32], 0)) if a.type == I32 else reader(builder, a.type)
    args = GetRowsArgs(
        y=place(node), a=place(a), rows=Chosen(rows.data, *rows.nb[:3]), n=extents(node.ne), limit=a.ne[1],
        number=builder.number + 1, status=builder.status(), kind=kind, table=table,
    )  # fmt: skip
    spec = Spec("rows", "get_rows", (family,))
    builder.launch(spec, (node.nrows, min(blocks(node.ne[0], THREADS), 64)), THREADS, args)


def put(builder: Builder, node: Tensor) -> None:
    b, rows = source(node, 0), source(node, 1)
    if not b.nelements:
        return
    single = b.ne[0] == 1  # a transposed cache: one thread a row
    made = node.type in encoders.KINDS
    kind = encoders.KINDS[node.type] if made else KINDS[node.type]
    args = SetRowsArgs(
        y=place(node), b=place(b), rows=Chosen(rows.data, *rows.nb[:3]), n=Extents(b.nrows if single else b.ne[0], *b.ne[1:3]),
        m1=rows.ne[1], m2=rows.ne[2], limit=node.ne[1], number=builder.number + 1, status=builder.status(), ky=kind,
        kb=KINDS[b.type], wide=int(rows.type == GGMLType.I64),
    )  # fmt: skip
    if single and not made:
        builder.launch(Spec("rows", "set_elements"), (blocks(b.nrows, THREADS),), THREADS, args)
    else:
        grid = (b.nrows, min(blocks(b.ne[0], THREADS), 64))
        builder.launch(Spec("rows", "set_rows", (int(made),)), grid, THREADS, args)


class Chosen(NamedTuple):
    """Where the numbers of rows lie, and what is between them."""

    rows: i64
    rows0: i64
    rows1: i64
    rows2: i64


class GetRowsArgs(NamedTuple):
    y: Place
    a: Place
    rows: Chosen
    n: Extents
    limit: i32
    number: i32
    status: i64
    kind: i32
    table: i64


def get_rows(family):
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.blocks import element

    value = element(family)
    plain = family == "floats"

    @entry(GetRowsArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, a, a0, a1, a2, a3, rows, rows0, rows1, rows2, n0, n1, n2, limit, number, status, kind,
        table,
    ):  # fmt: skip
        row = d.block_x()
        above = d.udiv(row, n1)
        i1 = d.i32(row - above * n1)
        i3 = d.udiv(above, n2)
        i2 = d.i32(above - i3 * n2)
        which = d.ld_i32(rows + i1 * rows0 + i2 * rows1 + i3 * rows2)
        z = y + i1 * y1 + i2 * y2 + i3 * y3
        x = a + which * a1 + i2 * a2 + i3 * a3
        if which < 0 or which >= limit:
            if d.thread() == 0:
                d.st_i32x4(status, number, which, which >> 31, limit)
        else:
            i = d.i32(d.block_y() * d.threads() + d.thread())
            while i < n0:
                if plain and kind == 3:
                    d.st_i32(z + i * y0, d.ld_i32(x + i * a0))
                else:
                    d.st_f32(z + i * y0, value(x, i, a0, kind, table))
                i = d.i32(i + d.blocks_y() * d.threads())

    return kernel


class SetRowsArgs(NamedTuple):
    y: Place
    b: Place
    rows: Chosen
    n: Extents
    m1: i32
    m2: i32
    limit: i32
    number: i32
    status: i64
    ky: i32
    kb: i32
    wide: i32


def set_rows(made):
    """`made`: values become blocks, a warp each."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places
    from pyggml.kernels.cuda.encoders import encoder

    load, store = access()
    place = places()
    encode = encoder() if made else None

    @d.inline
    def elements(z, y0, ky, x, b0, kb, n0):
        i = d.i32(d.block_y() * d.threads() + d.thread())
        while i < n0:
            store(z + i * y0, ky, load(x + i * b0, kb))
            i = d.i32(i + d.blocks_y() * d.threads())

    @d.inline
    def blocks(z, y0, ky, x, b0, kb, n0):
        warps = d.threads() >> 5
        block = d.i32(d.block_y() * warps + (d.thread() >> 5))
        while block < n0 >> 5:
            encode(z + block * y0, load(x + (block * 32 + (d.thread() & 31)) * b0, kb), ky)
            block = d.i32(block + d.blocks_y() * warps)

    write = blocks if made else elements

    @entry(SetRowsArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, b, b0, b1, b2, b3, rows, rows0, rows1, rows2, n0, n1, n2, m1, m2, limit, number, status,
        ky, kb, wide,
    ):  # fmt: skip
        _, i1, i2, i3 = place(d.i32(d.block_x()), 1, n1, n2)
        at = rows + i1 * rows0 + d.urem(i2, m1) * rows1 + d.urem(i3, m2) * rows2
        which = d.ld_i64(at) if wide else d.i64(d.ld_i32(at))
        if which < 0 or which >= limit:
            if d.thread() == 0:
                d.st_i32x4(status, number, which, which >> 32, limit)
        else:
            write(y + which * y1 + i2 * y2 + i3 * y3, y0, ky, b + i1 * b1 + i2 * b2 + i3 * b3, b0, kb, n0)

    return kernel


def set_elements():
    """Rows of one element."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    load, store = access()
    place = places()

    @entry(SetRowsArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, b, b0, b1, b2, b3, rows, rows0, rows1, rows2, n0, n1, n2, m1, m2, limit, number,
        status, ky, kb, wide,
    ):  # fmt: skip
        row = d.i32(d.block_x() * d.threads() + d.thread())
        _, i1, i2, i3 = place(row, 1, n1, n2)
        if row < n0:
            at = rows + i1 * rows0 + d.urem(i2, m1) * rows1 + d.urem(i3, m2) * rows2
            which = d.ld_i64(at) if wide else d.i64(d.ld_i32(at))
            if which < 0 or which >= limit:
                d.st_i32x4(status, number, which, which >> 32, limit)
            else:
                store(y + which * y1 + i2 * y2 + i3 * y3, ky, load(b + i1 * b1 + i2 * b2 + i3 * b3, kb))

    return kernel
