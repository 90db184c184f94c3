"""GLU: its rule and builders. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import GluOp, Op
from pyggml.ops.rules import (
    Shape,
    Srcs,
    build,
    need,
    option,
    rule,
    sources,
)
from pyggml.tensor import Tensor, pack_params


@rule(Op.GLU)
def _glu(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = sources(Op.GLU, src, 1, 1)
    kind, b = node.param_i32(0), option(src, 1)
    if not 0 <= kind < len(GluOp):
        need(False, Op.GLU, f"unknown function number {kind}", a)
    need(a.is_contiguous_from(1), Op.GLU, "rows of the source are not contiguous", a)
    if b is None:
        return a.type, (a.ne[0] // 2, *a.ne[1:])
    need(b.is_contiguous_from(1), Op.GLU, "rows of the gate are not contiguous", b)
    need(a.ne == b.ne and a.type == b.type, Op.GLU, "the halves differ", a, b)
    return a.type, a.ne


def glu(
    a: Tensor,
    b: Tensor | None,
    kind: GluOp,
    swapped: bool = False,
    name: str = "",
    alpha: float = 0.0,
    limit: float = 0.0,
) -> Tensor:
    """f(a) * b; without `b` the halves of each row of `a` (`swapped`: the second half goes through f), whose last element
    is left out if their number is odd. `alpha` and `limit` of SWIGLU_OAI, `limit` of SWIGLU_CLAMP
    (ggml.c: ggml_swiglu_oai)."""
    params = pack_params("iiff", kind, swapped, alpha, limit) if alpha or limit else pack_params("ii", kind, swapped)
    return build(Op.GLU, (a,) if b is None else (a, b), params, name)


def swiglu(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """silu(a) * b."""
    return glu(a, b, GluOp.SWIGLU, name=name)
