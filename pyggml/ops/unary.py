"""SCALE and UNARY: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import SIZES, GGMLType
from pyggml.ops.numbers import Op, UnaryOp
from pyggml.ops.rules import (
    Shape,
    Srcs,
    build,
    dense_rows,
    need,
    rule,
    sources,
)
from pyggml.tensor import Tensor, pack_params


@rule(Op.SCALE)
def _scale(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.SCALE, src, 1)
    need(a.nb[0] == SIZES[a.type].type_size, Op.SCALE, "the source's rows are not dense", a)
    return a.type, a.ne


def scale(a: Tensor, s: float, bias: float = 0.0, name: str = "") -> Tensor:
    """a * s + bias."""
    return build(Op.SCALE, (a,), pack_params("ff", s, bias), name)


@rule(Op.UNARY)
def _unary(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.UNARY, src, 1)
    kind = node.param_i32(0)
    need(0 <= kind < len(UnaryOp), Op.UNARY, f"unknown function number {kind}", a)
    need(dense_rows(a), Op.UNARY, "the source's rows are not dense", a)
    return a.type, a.ne


def unary(a: Tensor, kind: UnaryOp, name: str = "") -> Tensor:
    """A function of each element."""
    return build(Op.UNARY, (a,), pack_params("i", kind), name)
