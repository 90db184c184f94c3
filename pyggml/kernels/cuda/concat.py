"""CONCAT: the bytes of one tensor behind those of the other, a piece of a block a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES
from pyggml.kernels.cuda.copy import MOVED, unit_of
from pyggml.kernels.cuda.launch_args import Extents, Place, entry, place
from pyggml.kernels.cuda.layout import THREADS, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types(MOVED, node, source(node, 0), source(node, 1))


def lower(builder: Builder, node: Tensor) -> None:
    a, b, dim = source(node, 0), source(node, 1), node.param_i32(0)
    size, unit = SIZES[node.type], unit_of(node.type, node, a, b)
    per = size.type_size // unit
    n = node.nelements // size.block_size * per
    args = ConcatArgs(
        y=place(node), n=Extents(node.ne[0] // size.block_size, node.ne[1], node.ne[2]), a=place(a), b=place(b), dim=dim,
        end=a.ne[dim] // (size.block_size if dim == 0 else 1), total=n, per=per, unit=unit,
    )  # fmt: skip
    builder.launch(Spec("concat", "concat"), (blocks(n),), THREADS, args)


class ConcatArgs(NamedTuple):
    """`end`: so many blocks of a in dimension `dim`; a block is `per` pieces of `unit` bytes."""

    y: Place
    n: Extents
    a: Place
    b: Place
    dim: i32
    end: i32
    total: i32
    per: i32
    unit: i32


def concat():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import moves, places

    place, move = places(), moves()

    @entry(ConcatArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, n0, n1, n2, a, a0, a1, a2, a3, b, b0, b1, b2, b3, dim, end, total, per, unit,
    ):  # fmt: skip
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            block = d.udiv(i, per)
            inside = (i - block * per) * unit
            i0, i1, i2, i3 = place(block, n0, n1, n2)
            to = y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3
            along = i0 if dim == 0 else i1 if dim == 1 else i2 if dim == 2 else i3
            at = a + i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3
            if along >= end:
                step = b0 if dim == 0 else b1 if dim == 1 else b2 if dim == 2 else b3
                at = b + i0 * b0 + i1 * b1 + i2 * b2 + i3 * b3 - end * step
            move(to + inside, at + inside, unit)

    return kernel
