"""ROPE, ROPE_BACK: their rule and builder. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Rule,
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
ROPE_MROPE = 8
ROPE_VISION = 24
ROPE_IMROPE = 40
ROPE_MODES = (ROPE_NORMAL, ROPE_NEOX, ROPE_MROPE, ROPE_VISION, ROPE_IMROPE)


def rope_pairs(n_dims: int, mode: int) -> int:
    """How many pairs are rotated: half of n_dims; n_dims in vision, which rotates whole rows."""
    return n_dims if mode == ROPE_VISION else n_dims // 2


def _rope_rule(op: Op) -> Rule:
    def rope(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
        a, positions = sources(op, src, 2, 1)
        factors, n_dims, mode = option(src, 2), node.param_i32(1), node.param_i32(2)
        if mode not in ROPE_MODES:
            need(False, op, f"mode {mode} is unknown (known: {ROPE_MODES})", a)
        need(positions.type == GGMLType.I32, op, "positions are not I32", positions)
        per_token = 4 if mode & ROPE_MROPE else 1
        wanted = (a.ne[2] * per_token, 1, 1, 1)
        if positions.ne != wanted:
            need(False, op, f"{per_token} positions a token are needed", a, positions)
        if not 0 < n_dims <= a.ne[0] or n_dims % 2:
            need(False, op, f"{n_dims} rotated dimensions", a)
        if mode & ROPE_MROPE:
            sections = [node.param_i32(i) for i in range(11, 15)]
            need(min(sections) >= 0 and any(sections[:3]), op, f"sections {sections}", a)
            need(sum(sections) <= a.ne[0], op, f"sections {sections} have more pairs than a row", a)
        if mode == ROPE_VISION:
            need(n_dims * 2 == a.ne[0], op, f"vision rotates half a row, not {n_dims} dimensions", a)
        if factors is not None:
            need(factors.type == GGMLType.F32, op, "frequency factors are not F32", factors)
            need(factors.ne[0] >= n_dims // 2, op, "too few frequency factors", factors)
        return a.type, a.ne

    return rope


for _op in (Op.ROPE, Op.ROPE_BACK):
    rule(_op, 0)(_rope_rule(_op))


def rope(
    a: Tensor, positions: Tensor, n_dims: int, mode: int = ROPE_NORMAL, *, factors: Tensor | None = None,
    sections: tuple[int, int, int, int] = (0, 0, 0, 0), n_ctx_orig: int = 0, freq_base: float = 10000.0,
    freq_scale: float = 1.0, ext_factor: float = 0.0, attn_factor: float = 1.0, beta_fast: float = 32.0,
    beta_slow: float = 1.0, offset: int = 0, back: bool = False, in_place: bool = False, name: str = "",
) -> Tensor:  # fmt: skip
    """Rotate pairs of `n_dims` elements, from `offset` on, of (ne0, n_head, n_tokens) by position x frequency.

    Pairs are neighbours (normal), n_dims/2 apart (neox, mrope, imrope) or n_dims apart over the whole row (vision).
    `factors` (F32) divide the frequencies; yarn through ext_factor. mrope, imrope and vision take four positions a
    token, (4 n_tokens,) with all first ones first, and `sections` say how many pairs follow each. `back` turns the
    other way (ROPE_BACK); `in_place` makes the result a view of `a`. ggml.c: ggml_rope_impl, ggml_rope_set_offset.
    """
    params = pack_params(
        "5i6f5i", 0, n_dims, mode, 0, n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow,
        *sections, offset,
    )  # fmt: skip
    src = (a, positions) if factors is None else (a, positions, factors)
    return build(Op.ROPE_BACK if back else Op.ROPE, src, params, name, a if in_place else None)
