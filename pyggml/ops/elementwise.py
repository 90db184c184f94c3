"""ADD, SUB, MUL, DIV: their rule and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    RULES,
    Rule,
    Shape,
    Srcs,
    build,
    can_repeat,
    need,
    sources,
)
from pyggml.tensor import Tensor


def _binary_rule(op: Op) -> Rule:
    def binary(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
        a, b = sources(op, src, 2)
        need(can_repeat(b, a), op, "the second operand does not tile the first", a, b)
        return a.type, a.ne

    return binary


for _op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV):
    RULES[_op] = _binary_rule(_op)


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
