"""CONCAT: its rule and builder. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor, pack_params


@rule(Op.CONCAT)
def _concat(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.CONCAT
    a, b = sources(op, src, 2)
    dim = node.param_i32(0)
    need(0 <= dim < 4, op, f"dimension {dim} must be 0 to 3")
    need(a.type == b.type, op, "types differ", a, b)
    rest = [i for i in range(4) if i != dim]
    need(all(a.ne[i] == b.ne[i] for i in rest), op, f"shapes differ in more than dimension {dim}", a, b)
    ne = [a.ne[i] + (b.ne[i] if i == dim else 0) for i in range(4)]
    return a.type, (ne[0], ne[1], ne[2], ne[3])


def concat(a: Tensor, b: Tensor, dim: int, name: str = "") -> Tensor:
    """b behind a in dimension `dim`."""
    return build(Op.CONCAT, (a, b), pack_params("i", dim), name)
