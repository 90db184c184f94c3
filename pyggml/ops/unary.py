"""SCALE, UNARY and the functions that have an op of their own: rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import SIZES, GGMLType
from pyggml.ops.numbers import Op, UnaryOp
from pyggml.ops.rules import (
    Rule,
    Shape,
    Srcs,
    build,
    dense_rows,
    need,
    rule,
    sources,
)
from pyggml.tensor import Tensor, pack_params


@rule(Op.SCALE, 0)
def _scale(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.SCALE, src, 1)
    need(a.nb[0] == SIZES[a.type].type_size, Op.SCALE, "rows of the source are not contiguous", a)
    return a.type, a.ne


def scale(a: Tensor, s: float, bias: float = 0.0, name: str = "") -> Tensor:
    """a * s + bias."""
    return build(Op.SCALE, (a,), pack_params("ff", s, bias), name)


@rule(Op.UNARY, 0)
def _unary(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.UNARY, src, 1)
    kind = node.param_i32(0)
    need(0 <= kind < len(UnaryOp), Op.UNARY, f"unknown function number {kind}", a)
    need(dense_rows(a), Op.UNARY, "rows of the source are not contiguous", a)
    return a.type, a.ne


def unary(a: Tensor, kind: UnaryOp, name: str = "") -> Tensor:
    """A function of each element."""
    return build(Op.UNARY, (a,), pack_params("i", kind), name)


def _function_rule(op: Op) -> Rule:
    def function(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
        (a,) = sources(op, src, 1)
        need(dense_rows(a), op, "rows of the source are not contiguous", a)
        return a.type, a.ne

    return function


for _op in (Op.SQR, Op.SQRT, Op.LOG, Op.SIN, Op.COS, Op.CLAMP, Op.LEAKY_RELU):
    rule(_op, 0)(_function_rule(_op))


def sqr(a: Tensor, name: str = "") -> Tensor:
    """a * a."""
    return build(Op.SQR, (a,), name=name)


def sqrt(a: Tensor, name: str = "") -> Tensor:
    return build(Op.SQRT, (a,), name=name)


def log(a: Tensor, name: str = "") -> Tensor:
    """The natural logarithm."""
    return build(Op.LOG, (a,), name=name)


def sin(a: Tensor, name: str = "") -> Tensor:
    return build(Op.SIN, (a,), name=name)


def cos(a: Tensor, name: str = "") -> Tensor:
    return build(Op.COS, (a,), name=name)


def clamp(a: Tensor, low: float, high: float, name: str = "") -> Tensor:
    """Each element, but at least `low` and at most `high`; NaN becomes `high`."""
    return build(Op.CLAMP, (a,), pack_params("ff", low, high), name)


def leaky_relu(a: Tensor, negative_slope: float, name: str = "") -> Tensor:
    """Negative elements times `negative_slope`; NaN becomes 0."""
    return build(Op.LEAKY_RELU, (a,), pack_params("f", negative_slope), name)
