"""SOFT_MAX and SOFT_MAX_BACK: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Shape,
    Srcs,
    build,
    divides,
    need,
    option,
    rule,
    sources,
)
from pyggml.tensor import Tensor, pack_params


@rule(Op.SOFT_MAX, 0, 1)
def _soft_max(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.SOFT_MAX, src, 1, 2)
    mask, sinks = option(src, 1), option(src, 2)
    need(a.is_contiguous, Op.SOFT_MAX, "the source is not contiguous", a)
    if mask is not None:
        need(mask.type in (GGMLType.F16, GGMLType.F32), Op.SOFT_MAX, "the mask is neither F16 nor F32", mask)
        need(mask.is_contiguous, Op.SOFT_MAX, "the mask is not contiguous", mask)
        need(
            mask.ne[0] == a.ne[0] and mask.ne[1] >= a.ne[1], Op.SOFT_MAX, "the mask is smaller than the source", a, mask
        )
        need(
            divides(mask.ne[2], a.ne[2]) and divides(mask.ne[3], a.ne[3]),
            Op.SOFT_MAX,
            "dimensions 2 and 3 of the mask do not divide those of the source",
            a,
            mask,
        )
    need(node.param_f32(1) <= 0.0 or mask is not None, Op.SOFT_MAX, "ALiBi needs a mask", a)
    if sinks is not None:
        need(
            sinks.type == GGMLType.F32 and sinks.ne == (a.ne[2], 1, 1, 1),
            Op.SOFT_MAX,
            "sinks must be one F32 a head",
            a,
            sinks,
        )
    return a.type, a.ne


def soft_max(
    a: Tensor, mask: Tensor | None = None, scale: float = 1.0, max_bias: float = 0.0, name: str = "",
    inplace: bool = False, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(a * scale + mask) of each row; mask (ne0, rows), F16 or F32, repeated over dimensions 2 and 3; sinks F32
    (ne2): a score a row that is left out of the result."""
    src: tuple[Tensor | None, ...] = (a,) if mask is None else (a, mask)
    if sinks is not None:
        src = (a, mask, sinks)
    return build(Op.SOFT_MAX, src, pack_params("ff", scale, max_bias), name, a if inplace else None)


@rule(Op.SOFT_MAX_BACK, 0, 1)
def _soft_max_back(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    dy, y = sources(Op.SOFT_MAX_BACK, src, 2)
    need(dy.ne == y.ne, Op.SOFT_MAX_BACK, "shapes differ", dy, y)
    need(node.param_f32(1) == 0.0, Op.SOFT_MAX_BACK, "the gradient of ALiBi is not supported", dy)
    return dy.type, dy.ne


def soft_max_back(dy: Tensor, y: Tensor, scale: float = 1.0, name: str = "") -> Tensor:
    """The gradient of soft_max's source, from that of its result `dy` and the result `y` itself."""
    return build(Op.SOFT_MAX_BACK, (dy, y), pack_params("ff", scale, 0.0), name)
