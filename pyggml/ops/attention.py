"""FLASH_ATTN_EXT: its rule and builder. Not how it is computed."""

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

PREC_F32 = 10
"""op_params[3]: sums in F32, which ours are anyway (ggml.h: ggml_prec)."""


@rule(Op.FLASH_ATTN_EXT)
def _flash_attn_ext(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.FLASH_ATTN_EXT
    q, k, v = sources(op, src, 3, 2)
    mask, sinks = option(src, 3), option(src, 4)
    need(q.type == GGMLType.F32, op, "q is not F32", q)
    need(q.ne[0] == k.ne[0], op, "q and k differ in head size", q, k)
    need(k.ne[1] == v.ne[1], op, "k and v differ in length", k, v)
    need(
        divides(k.ne[2], q.ne[2]) and divides(v.ne[2], q.ne[2]),
        op,
        "the numbers of heads of k and v do not divide that of q",
        q,
        k,
        v,
    )
    need(q.ne[3] == k.ne[3] == v.ne[3], op, "batches differ", q, k, v)
    if mask is not None:
        need(mask.type == GGMLType.F16 and mask.is_contiguous, op, "the mask is not contiguous F16", mask)
        need(mask.ne[0] >= k.ne[1] and mask.ne[1] >= q.ne[1], op, "the mask is smaller than q x k", q, k, mask)
        need(
            divides(mask.ne[2], q.ne[2]) and divides(mask.ne[3], q.ne[3]),
            op,
            "dimensions 2 and 3 of the mask do not divide those of the source",
            q,
            mask,
        )
    if node.param_i32(3) not in (0, PREC_F32):
        need(False, op, f"precision {node.param_i32(3)} is unknown", q)
    need(node.param_f32(1) <= 0.0 or mask is not None, op, "ALiBi needs a mask", q)
    if sinks is not None:
        need(
            sinks.type == GGMLType.F32 and sinks.ne == (q.ne[2], 1, 1, 1), op, "sinks must be one F32 a head", q, sinks
        )
    return GGMLType.F32, (v.ne[0], q.ne[2], q.ne[1], q.ne[3])


def flash_attn_ext(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, max_bias: float = 0.0, softcap: float = 0.0,
    sinks: Tensor | None = None, name: str = "",
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale + mask) v, fused.

    q (head, n_tokens, n_head), k (head, n_kv, n_head_kv), v (head_v, n_kv, n_head_kv), mask F16 (n_kv, >= n_tokens), sinks
    F32 (n_head): a score each that no value goes with -> F32 (head_v, n_head, n_tokens). Dimension 3 counts streams.
    """
    src: tuple[Tensor | None, ...] = (q, k, v) if mask is None else (q, k, v, mask)
    if sinks is not None:
        src = (q, k, v, mask, sinks)
    return build(Op.FLASH_ATTN_EXT, src, pack_params("3f", scale, max_bias, softcap), name)
