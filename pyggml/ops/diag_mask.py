"""DIAG_MASK_INF and DIAG_MASK_ZERO: their rule and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Rule, Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor, pack_params


def _diag_mask(op: Op) -> Rule:
    def check(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
        (a,) = sources(op, src, 1)
        need(a.type == GGMLType.F32, op, "the source is not F32", a)
        need(node.param_i32(0) >= 0, op, f"{node.param_i32(0)} columns before the diagonal: must not be negative", a)
        return a.type, a.ne

    return check


for _op in (Op.DIAG_MASK_INF, Op.DIAG_MASK_ZERO):
    rule(_op, 0)(_diag_mask(_op))


def diag_mask_inf(a: Tensor, n_past: int, inplace: bool = False, name: str = "") -> Tensor:
    """a (F32, columns x rows) with -inf in row j from column n_past + j + 1 on."""
    return build(Op.DIAG_MASK_INF, (a,), pack_params("i", n_past), name, a if inplace else None)


def diag_mask_zero(a: Tensor, n_past: int, inplace: bool = False, name: str = "") -> Tensor:
    """The same with 0."""
    return build(Op.DIAG_MASK_ZERO, (a,), pack_params("i", n_past), name, a if inplace else None)
