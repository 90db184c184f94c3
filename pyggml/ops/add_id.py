"""ADD_ID: its rule and builder. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor


@rule(Op.ADD_ID, 0)
def _add_id(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.ADD_ID
    a, b, ids = sources(op, src, 3)
    need(a.type == b.type == GGMLType.F32, op, "operands are not F32", a, b)
    need(ids.type == GGMLType.I32, op, "row indices are not I32", ids)
    need(a.ne[0] == b.ne[0], op, "rows differ in length", a, b)
    need(a.ne[1:3] == ids.ne[:2] and a.ne[3] == 1, op, "must have one row index for each row", a, ids)
    need(b.ne[2:] == (1, 1) and ids.ne[2:] == (1, 1), op, "too many dimensions", b, ids)
    return a.type, a.ne


def add_id(a: Tensor, b: Tensor, ids: Tensor, name: str = "") -> Tensor:
    """a (n, used, tokens) + row ids[slot, token] of b (n, rows); all F32, ids (used, tokens) I32."""
    return build(Op.ADD_ID, (a, b, ids), name=name)
