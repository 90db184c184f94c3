"""MUL_MAT: its rule and builder. Not how it is computed."""

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
    need(a.ne[0] == b.ne[0], Op.MUL_MAT, "rows differ in length", a, b)
    need(divides(a.ne[2], b.ne[2]) and divides(a.ne[3], b.ne[3]), Op.MUL_MAT, "the first does not tile the batch", a, b)
    need(not a.is_transposed, Op.MUL_MAT, "the first operand is transposed", a)
    return GGMLType.F32, (a.ne[1], b.ne[1], b.ne[2], b.ne[3])


def mul_mat(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a (k, n), b (k, m) -> (n, m): the dot product of each row of a with each row of b, in F32; a tiles b's batch."""
    return build(Op.MUL_MAT, (a, b), name=name)
