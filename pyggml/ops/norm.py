"""RMS_NORM: its rule and builder. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Shape,
    Srcs,
    build,
    need,
    rule,
    sources,
)
from pyggml.tensor import Tensor, pack_params


@rule(Op.RMS_NORM)
def _rms_norm(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.RMS_NORM, src, 1)
    eps = node.param_f32(0)
    need(eps >= 0.0, Op.RMS_NORM, f"eps is {eps}", a)
    return a.type, a.ne


def rms_norm(a: Tensor, eps: float, name: str = "") -> Tensor:
    """Each row over its root mean square: a / sqrt(mean(a*a) + eps)."""
    return build(Op.RMS_NORM, (a,), pack_params("f", eps), name)
