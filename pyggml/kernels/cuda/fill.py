"""FILL, ARANGE, TRI, DIAG: tensors made of one number, of a sequence, or of a part of each row; one thread an element."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES
from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F32, FLOATS, KINDS, SINGLE, THREADS, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, f32, i32
from pyggml.ops import Op, TriType

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

DIAGONAL = len(TriType)
"""What of a matrix is kept, behind the numbers of TriType: a row's elements on the diagonal."""


def why_not(node: Tensor) -> str | None:
    if node.op in (Op.FILL, Op.ARANGE):
        return refuse_types(FLOATS if node.op == Op.FILL else [F32], node)
    return refuse_types(SINGLE, node, source(node, 0))


def lower(builder: Builder, node: Tensor) -> None:
    n = node.nelements
    if node.op in (Op.FILL, Op.ARANGE):
        step = node.param_f32(2) if node.op == Op.ARANGE else 0.0
        args = SequenceArgs(
            y=place(node), kind=KINDS[node.type], n=extents(node.ne), total=n, first=node.param_f32(0), step=step
        )
        builder.launch(Spec("fill", "sequence"), (blocks(n),), THREADS, args)
        return
    a = source(node, 0)
    kept = PartArgs(
        y=place(node), n=extents(node.ne), a=place(a), total=n, unit=SIZES[a.type].type_size,
        kept=node.param_i32(0) if node.op == Op.TRI else DIAGONAL,
    )  # fmt: skip
    builder.launch(Spec("fill", "part"), (blocks(n),), THREADS, kept)


class SequenceArgs(NamedTuple):
    y: Place
    kind: i32
    n: Extents
    total: i32
    first: f32
    step: f32


def sequence():
    """first + step x the element's number."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    _, store = access()
    place = places()

    @entry(SequenceArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, kind, n0, n1, n2, total, first, step):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            value = first
            if step != d.f32(0):
                value = first + d.mul_rn(step, d.f32(i))
            store(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, kind, value)

    return kernel


class PartArgs(NamedTuple):
    """`kept`: a number of TriType, or DIAGONAL; `unit`: bytes of an element."""

    y: Place
    n: Extents
    a: Place
    total: i32
    unit: i32
    kept: i32


def part():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import moves, places, zeros

    place, move, clear = places(), moves(), zeros()

    @entry(PartArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, n0, n1, n2, a, a0, a1, a2, a3, total, unit, kept):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            to = y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3
            at = a + i0 * a0 + i2 * a2 + i3 * a3
            keep = i0 == i1
            if kept < DIAGONAL:
                at = at + i1 * a1
                if i0 != i1:
                    keep = (i0 > i1) == (kept < 2)
                else:
                    keep = kept == 0 or kept == 2
            if keep:
                move(to, at, unit)
            else:
                clear(to, unit)

    return kernel
