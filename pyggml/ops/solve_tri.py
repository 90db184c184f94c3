"""SOLVE_TRI: its rule and builder. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor


@rule(Op.SOLVE_TRI)
def _solve_tri(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.SOLVE_TRI
    a, b = sources(op, src, 2)
    need(a.type == b.type == GGMLType.F32, op, "a source is not F32", a, b)
    need(a.ne[0] == a.ne[1] == b.ne[1], op, "not a square matrix of as many rows as there are right-hand sides", a, b)
    need(a.ne[2:] == b.ne[2:], op, "batches differ", a, b)
    need(a.is_contiguous and b.is_contiguous, op, "a source is not contiguous", a, b)
    return GGMLType.F32, b.ne


def solve_tri(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """x (k, n) with a x = b: a (n, n) lower triangular (what stands above the diagonal is not looked at), b (k, n)."""
    return build(Op.SOLVE_TRI, (a, b), name=name)
