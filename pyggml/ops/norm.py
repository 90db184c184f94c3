"""NORM, RMS_NORM, L2_NORM, GROUP_NORM: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
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


def _norm_rule(op: Op) -> Rule:
    def norm(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
        (a,) = sources(op, src, 1)
        eps = node.param_f32(0)
        if not eps >= 0.0:
            need(False, op, f"eps is {eps}, must not be negative", a)
        return a.type, a.ne

    return norm


for _op in (Op.NORM, Op.RMS_NORM, Op.L2_NORM):
    rule(_op, 0)(_norm_rule(_op))


def norm(a: Tensor, eps: float, name: str = "") -> Tensor:
    """Each row less its mean, over its standard deviation: (a - mean(a)) / sqrt(variance(a) + eps)."""
    return build(Op.NORM, (a,), pack_params("f", eps), name)


def rms_norm(a: Tensor, eps: float, name: str = "") -> Tensor:
    """Each row over its root mean square: a / sqrt(mean(a*a) + eps)."""
    return build(Op.RMS_NORM, (a,), pack_params("f", eps), name)


def l2_norm(a: Tensor, eps: float, name: str = "") -> Tensor:
    """Each row over its length: a / max(sqrt(sum(a*a)), eps)."""
    return build(Op.L2_NORM, (a,), pack_params("f", eps), name)


@rule(Op.GROUP_NORM, 0)
def _group_norm(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.GROUP_NORM, src, 1)
    groups, eps = node.param_i32(0), node.param_f32(1)
    need(groups > 0, Op.GROUP_NORM, f"{groups} groups: must be at least 1", a)
    need(eps >= 0.0, Op.GROUP_NORM, f"eps is {eps}, must not be negative", a)
    need(dense_rows(a), Op.GROUP_NORM, "rows of the source are not contiguous", a)
    return a.type, a.ne


def group_norm(a: Tensor, n_groups: int, eps: float, name: str = "") -> Tensor:
    """NORM of whole groups of channels (dimension 2), of ceil(channels / n_groups) each; the last may be smaller."""
    return build(Op.GROUP_NORM, (a,), pack_params("if", n_groups, eps), name)
