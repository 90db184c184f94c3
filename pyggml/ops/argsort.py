"""ARGSORT, TOP_K: their rules and builders. Not how rows are sorted."""

from __future__ import annotations

from enum import IntEnum

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.ops.views import view
from pyggml.tensor import Tensor, pack_params

MOST = 2**31 - 1  # elements of a row: their numbers are I32


class SortOrder(IntEnum):
    """op_params[0] of ARGSORT (ggml.h: ggml_sort_order)."""

    ASC = 0
    DESC = 1


@rule(Op.ARGSORT)
def _argsort(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.ARGSORT
    (a,) = sources(op, src, 1)
    need(a.type == GGMLType.F32, op, "the source is not F32", a)
    need(a.ne[0] <= MOST, op, f"rows of more than {MOST} elements", a)
    order = node.param_i32(0)
    need(order in (SortOrder.ASC, SortOrder.DESC), op, f"order {order} must be 0 or 1")
    return GGMLType.I32, a.ne


def argsort(a: Tensor, order: SortOrder = SortOrder.ASC, name: str = "") -> Tensor:
    """The numbers of each row's elements (F32) in the order of their values; of equal ones the lower number first, NaNs
    last."""
    return build(Op.ARGSORT, (a,), pack_params("i", order), name=name)


def argsort_top_k(a: Tensor, k: int, name: str = "") -> Tensor:
    """The numbers of each row's k largest elements, largest first: a view of an ARGSORT (ggml.c: ggml_argsort_top_k)."""
    need(a.ne[0] >= k, Op.ARGSORT, f"rows are shorter than {k}", a)
    order = argsort(a, SortOrder.DESC, name)
    return view(order, (k, *order.ne[1:]), order.nb[1:], 0)


@rule(Op.TOP_K)
def _top_k(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.TOP_K
    (a,) = sources(op, src, 1)
    k = node.ne[0]
    need(a.type == GGMLType.F32, op, "the source is not F32", a)
    need(a.ne[0] <= MOST, op, f"rows of more than {MOST} elements", a)
    need(0 <= k <= a.ne[0], op, f"k is {k}, must be 0 to the row length", a)
    return GGMLType.I32, (k, *a.ne[1:])


def top_k(a: Tensor, k: int, name: str = "") -> Tensor:
    """The numbers of each row's k largest elements (F32). ggml leaves their order open; here the largest is first, and of
    equal ones the lower number counts. NaNs are the smallest."""
    need(0 <= k <= a.ne[0], Op.TOP_K, f"k is {k}, must be 0 to the row length", a)
    return Tensor(GGMLType.I32, (k, *a.ne[1:]), op=Op.TOP_K, src=(a,), name=name)
