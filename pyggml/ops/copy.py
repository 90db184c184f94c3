"""CPY, CONT, DUP: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Shape,
    Srcs,
    build,
    check,
    need,
    rule,
    sources,
)
from pyggml.tensor import Tensor


@rule(Op.CPY, 0, 1)
def _cpy(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, b = sources(Op.CPY, src, 2)
    need(a.nelements == b.nelements, Op.CPY, "source and destination differ in size", a, b)
    return b.type, b.ne


def cpy(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """Write a's elements into b (which may differ in type and shape); the result is a view of b."""
    return build(Op.CPY, (a, b), name=name, view_of=b)


@rule(Op.CONT)
def _cont(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.CONT, src, 1)
    need(a.nelements == node.nelements or node.nelements == 0, Op.CONT, "the shape has another number of elements", a)
    return a.type, node.ne if node.nelements else a.ne


def cont(a: Tensor, *ne: int, name: str = "") -> Tensor:
    """A dense copy of `a`, in the shape `ne` if one is given."""
    shape = (*ne, 1, 1, 1)[:4] if ne else a.ne
    node = Tensor(a.type, shape, op=Op.CONT, src=(a,), name=name)
    check(node)
    return node


@rule(Op.DUP, 0)
def _dup(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.DUP, src, 1)
    return a.type, a.ne


def dup(a: Tensor, name: str = "") -> Tensor:
    """A dense copy of `a`."""
    return build(Op.DUP, (a,), name=name)
