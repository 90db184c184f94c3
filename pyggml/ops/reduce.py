"""SUM, SUM_ROWS, MEAN, CUMSUM, ARGMAX, COUNT_EQUAL: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor


@rule(Op.SUM)
def _sum(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.SUM, src, 1)
    return a.type, (1, 1, 1, 1)


def sum_all(a: Tensor, name: str = "") -> Tensor:
    """The sum of all elements, one element of a's type (ggml_sum)."""
    return build(Op.SUM, (a,), name=name)


@rule(Op.SUM_ROWS)
def _sum_rows(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.SUM_ROWS, src, 1)
    return a.type, (1, *a.ne[1:])


def sum_rows(a: Tensor, name: str = "") -> Tensor:
    """(n, ...) -> (1, ...): the sum of each row."""
    return build(Op.SUM_ROWS, (a,), name=name)


@rule(Op.MEAN)
def _mean(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.MEAN, src, 1)
    return GGMLType.F32, (1, *a.ne[1:])


def mean(a: Tensor, name: str = "") -> Tensor:
    """(n, ...) -> F32 (1, ...): the mean of each row."""
    return build(Op.MEAN, (a,), name=name)


@rule(Op.CUMSUM)
def _cumsum(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.CUMSUM, src, 1)
    need(a.type == GGMLType.F32, Op.CUMSUM, "the source is not F32", a)
    return a.type, a.ne


def cumsum(a: Tensor, name: str = "") -> Tensor:
    """Along each row (F32) the sum of the elements so far."""
    return build(Op.CUMSUM, (a,), name=name)


@rule(Op.ARGMAX)
def _argmax(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.ARGMAX, src, 1)
    need(a.ne[2] == a.ne[3] == 1, Op.ARGMAX, "the source is not a matrix", a)
    need(a.ne[0] < 2**31, Op.ARGMAX, "a row has 2^31 elements or more", a)
    return GGMLType.I32, (a.ne[1], 1, 1, 1)


def argmax(a: Tensor, name: str = "") -> Tensor:
    """(n, rows) -> I32 (rows,): where each row's largest element is, of equal ones the last."""
    return build(Op.ARGMAX, (a,), name=name)


@rule(Op.COUNT_EQUAL)
def _count_equal(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, b = sources(Op.COUNT_EQUAL, src, 2)
    need(a.ne == b.ne, Op.COUNT_EQUAL, "the sources differ in shape", a, b)
    return GGMLType.I64, (1, 1, 1, 1)


def count_equal(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """In how many places a and b (I32) are equal, one I64."""
    return build(Op.COUNT_EQUAL, (a, b), name=name)
