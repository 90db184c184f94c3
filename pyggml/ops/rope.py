"""ROPE: its rule and builder. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
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

ROPE_NORMAL = 0
ROPE_NEOX = 2


@rule(Op.ROPE)
def _rope(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, positions = sources(Op.ROPE, src, 2, 1)
    factors, n_dims, mode = option(src, 2), node.param_i32(1), node.param_i32(2)
    need(positions.type == GGMLType.I32, Op.ROPE, "positions are not I32", positions)
    per_token = 4 if mode & 8 else 1
    need(
        positions.ne == (a.ne[2] * per_token, 1, 1, 1),
        Op.ROPE,
        f"{per_token} position(s) for each token needed",
        a,
        positions,
    )
    need(0 < n_dims <= a.ne[0] and n_dims % 2 == 0, Op.ROPE, f"{n_dims} rotated dimensions", a)
    if factors is not None:
        need(
            factors.type == GGMLType.F32 and factors.ne[0] >= n_dims // 2, Op.ROPE, "too few frequency factors", factors
        )
    return a.type, a.ne


def rope(
    a: Tensor, positions: Tensor, n_dims: int, mode: int = ROPE_NORMAL, *, factors: Tensor | None = None,
    n_ctx_orig: int = 0, freq_base: float = 10000.0, freq_scale: float = 1.0, ext_factor: float = 0.0,
    attn_factor: float = 1.0, beta_fast: float = 32.0, beta_slow: float = 1.0, name: str = "",
) -> Tensor:  # fmt: skip
    """Rotate pairs of the first `n_dims` elements of (n_dims.., n_head, n_tokens) by position x frequency.

    Pairs are neighbours (normal) or n_dims/2 apart (neox); `factors` divide the frequencies; yarn through ext_factor.
    """
    params = pack_params(
        "5i6f", 0, n_dims, mode, 0, n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
    )
    return build(Op.ROPE, (a, positions) if factors is None else (a, positions, factors), params, name)
