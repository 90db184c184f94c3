"""GET_ROWS, SET_ROWS: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Shape,
    Srcs,
    build,
    dense_rows,
    divides,
    need,
    rule,
    sources,
)
from pyggml.tensor import Tensor


@rule(Op.GET_ROWS)
def _get_rows(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, rows = sources(Op.GET_ROWS, src, 2)
    need(a.ne[2] == rows.ne[1] and a.ne[3] == rows.ne[2] and rows.ne[3] == 1, Op.GET_ROWS, "batches differ", a, rows)
    need(rows.type == GGMLType.I32, Op.GET_ROWS, "row indices are not I32", rows)
    dtype = GGMLType.I32 if a.type == GGMLType.I32 else GGMLType.F32
    return dtype, (a.ne[0], rows.ne[0], rows.ne[1], rows.ne[2])


def get_rows(a: Tensor, rows: Tensor, name: str = "") -> Tensor:
    """Rows `rows` (I32) of a (any type), converted to F32."""
    return build(Op.GET_ROWS, (a, rows), name=name)


@rule(Op.SET_ROWS, 2)
def _set_rows(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.SET_ROWS
    b, rows, a = sources(op, src, 3)
    need(a.ne[0] == b.ne[0] and a.ne[2:] == b.ne[2:], op, "source and destination differ in shape", a, b)
    need(b.ne[1] == rows.ne[0] and rows.ne[3] == 1, op, "must have one row index for each row", b, rows)
    need(
        divides(rows.ne[1], b.ne[2]) and divides(rows.ne[2], b.ne[3]),
        op,
        "dimensions of the row indices do not divide those of the batch",
        b,
        rows,
    )
    need(dense_rows(a) and dense_rows(b), op, "rows are not contiguous", a, b)
    need(b.type in (GGMLType.F32, GGMLType.F16), op, "rows are neither F32 nor F16", b)
    need(rows.type in (GGMLType.I32, GGMLType.I64), op, "row indices are neither I32 nor I64", rows)
    need(node.nb == a.nb, op, "the result has other strides than the destination", node, a) if node.nelements else None
    return a.type, a.ne


def set_rows(a: Tensor, b: Tensor, rows: Tensor, name: str = "") -> Tensor:
    """Write the rows of b (F32) to rows `rows` (I32 or I64) of a, converted to a's type; the result is a view of a."""
    return build(Op.SET_ROWS, (b, rows, a), name=name, view_of=a)
