"""REPEAT, REPEAT_BACK: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, can_repeat, check, need, rule, sources
from pyggml.tensor import Tensor


@rule(Op.REPEAT)
def _repeat(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.REPEAT, src, 1)
    need(can_repeat(a, node), Op.REPEAT, "the source cannot be repeated to the shape of the result", a, node)
    return a.type, node.ne


def repeat(a: Tensor, *ne: int, name: str = "") -> Tensor:
    """a again and again, until the shape `ne` is full."""
    return _checked(Tensor(a.type, ne, op=Op.REPEAT, src=(a,), name=name))


@rule(Op.REPEAT_BACK)
def _repeat_back(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.REPEAT_BACK, src, 1)
    need(can_repeat(node, a), Op.REPEAT_BACK, "the result cannot be repeated to the shape of the source", a, node)
    return a.type, node.ne


def repeat_back(a: Tensor, *ne: int, name: str = "") -> Tensor:
    """The sum of all tiles of shape `ne` that `a` consists of."""
    return _checked(Tensor(a.type, ne, op=Op.REPEAT_BACK, src=(a,), name=name))


def _checked(node: Tensor) -> Tensor:
    check(node)
    return node
