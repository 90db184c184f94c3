"""LIGHTNING_INDEXER: its rule and builder. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, divides, need, rule, sources
from pyggml.tensor import Tensor


@rule(Op.LIGHTNING_INDEXER)
def _lightning_indexer(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.LIGHTNING_INDEXER
    q, k, weights, mask = sources(op, src, 4)
    size, n_head, n_tokens, streams = q.ne
    need(q.type == weights.type == GGMLType.F32, op, "queries or weights are not F32", q, weights)
    need(mask.type == GGMLType.F16, op, "the mask is not F16", mask)
    need(
        k.ne == (size, 1, k.ne[2], streams), op, "there must be one key a cell, of the queries' size and streams", q, k
    )
    need(weights.ne == (n_head, n_tokens, 1, streams), op, "there must be one weight a query", q, weights)
    need(mask.ne[:3] == (k.ne[2], n_tokens, 1), op, "the mask must have a row a token, of a number a cell", mask, k, q)
    need(divides(mask.ne[3], streams), op, "the number of masks does not divide that of streams", mask, q)
    return GGMLType.F32, (k.ne[2], n_tokens, 1, streams)


def lightning_indexer(q: Tensor, k: Tensor, weights: Tensor, mask: Tensor, name: str = "") -> Tensor:
    """How well a token's queries fit the key of each cell: the sum over heads of max(q k, 0) * weight, and the mask's number.

    q F32 (size, n_head, n_tokens, streams), k of any type (size, 1, n_kv, streams), weights F32 (n_head, n_tokens, 1,
    streams), mask F16 (n_kv, n_tokens, 1, as many as divide streams) -> F32 (n_kv, n_tokens, 1, streams). A product that is
    NaN counts as 0 (ggml.c: ggml_lightning_indexer).
    """
    return build(Op.LIGHTNING_INDEXER, (q, k, weights, mask), name=name)
