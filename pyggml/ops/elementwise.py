"""ADD, SUB, MUL, DIV, ADD1: their rule and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Rule,
    Shape,
    Srcs,
    build,
    can_repeat,
    need,
    rule,
    sources,
)
from pyggml.tensor import Tensor


def _binary_rule(op: Op) -> Rule:
    def binary(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
        a, b = sources(op, src, 2)
        need(can_repeat(b, a), op, "the second operand cannot be repeated to the shape of the first", a, b)
        if op == Op.ADD and node.nelements and node.type == GGMLType.F32:
            return GGMLType.F32, a.ne  # ggml.c: ggml_add_cast
        return a.type, a.ne

    return binary


for _op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV):
    rule(_op, 0, 1)(_binary_rule(_op))


def add(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a + b; b is repeated over a."""
    return build(Op.ADD, (a, b), name=name)


def sub(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a - b; b is repeated over a."""
    return build(Op.SUB, (a, b), name=name)


def mul(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a * b elementwise; b is repeated over a."""
    return build(Op.MUL, (a, b), name=name)


def div(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a / b elementwise; b is repeated over a."""
    return build(Op.DIV, (a, b), name=name)


@rule(Op.ADD1, 0)
def _add1(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, b = sources(Op.ADD1, src, 2)
    need(b.ne == (1, 1, 1, 1), Op.ADD1, "the second operand is more than one number", a, b)
    return a.type, a.ne


def add1(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a + b, where b is one number."""
    return build(Op.ADD1, (a, b), name=name)
