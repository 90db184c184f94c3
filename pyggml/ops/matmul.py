"""MUL_MAT, MUL_MAT_ID, OUT_PROD: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Shape,
    Srcs,
    build,
    divides,
    need,
    rule,
    sources,
)
from pyggml.tensor import Tensor


@rule(Op.MUL_MAT)
def _mul_mat(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, b = sources(Op.MUL_MAT, src, 2)
    (k, n, a2, a3), (kb, m, b2, b3) = a.ne, b.ne
    if k != kb:
        need(False, Op.MUL_MAT, "rows differ in length", a, b)
    if not (divides(a2, b2) and divides(a3, b3)):
        why = "dimensions 2 and 3 of the first operand do not divide those of the second"
        need(False, Op.MUL_MAT, why, a, b)
    if a.is_transposed:
        need(False, Op.MUL_MAT, "the first operand is transposed", a)
    return GGMLType.F32, (n, m, b2, b3)


def mul_mat(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a (k, n), b (k, m) -> (n, m): the dot product of each row of a with each row of b, in F32; a tiles b's batch."""
    return build(Op.MUL_MAT, (a, b), name=name)


@rule(Op.MUL_MAT_ID)
def _mul_mat_id(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.MUL_MAT_ID
    a, b, ids = sources(op, src, 3)
    need(a.ne[3] == 1 and b.ne[3] == 1 and ids.ne[2] == ids.ne[3] == 1, op, "too many dimensions", a, b, ids)
    need(a.ne[0] == b.ne[0], op, "rows differ in length", a, b)
    need(ids.type == GGMLType.I32, op, "indices of experts are not I32", ids)
    need(ids.ne[1] == b.ne[2], op, "there must be one list of experts for each token", b, ids)
    need(
        divides(b.ne[1], ids.ne[0]), op, "the number of rows does not divide the length of the lists of experts", b, ids
    )
    need(not a.is_transposed, op, "the first operand is transposed", a)
    return GGMLType.F32, (a.ne[1], ids.ne[0], b.ne[2], 1)


def mul_mat_id(a: Tensor, b: Tensor, ids: Tensor, name: str = "") -> Tensor:
    """a (k, n, matrices), b (k, used or a divisor of it, tokens), ids (used, tokens; I32) -> (n, used, tokens), in F32:
    row (slot, token) is b's row (slot, token) times matrix ids[slot, token]."""
    return build(Op.MUL_MAT_ID, (a, b, ids), name=name)


@rule(Op.OUT_PROD)
def _out_prod(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.OUT_PROD
    a, b = sources(op, src, 2)
    need(a.ne[1] == b.ne[1], op, "columns differ in length", a, b)
    need(
        divides(a.ne[2], b.ne[2]) and divides(a.ne[3], b.ne[3]),
        op,
        "dimensions 2 and 3 of the first operand do not divide those of the second",
        a,
        b,
    )
    need(not a.is_transposed, op, "the first operand is transposed", a)
    return GGMLType.F32, (a.ne[0], b.ne[0], b.ne[2], b.ne[3])


def out_prod(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a (n, k), b (m, k) -> (n, m): the sum over k of products of a column of a and one of b, in F32; a tiles b's batch."""
    return build(Op.OUT_PROD, (a, b), name=name)
