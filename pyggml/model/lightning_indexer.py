"""Which tokens sparse attention reads: those with the best scores of an indexer (DeepSeek V3.2; llama.cpp: models/deepseek32.cpp,
llama-graph.cpp: build_attn of llm_graph_input_attn_k_dsa).

Owns the scores, and the mask that is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.memory import Need
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.linear import Linear
from pyggml.model.module import Module
from pyggml.model.norms import LayerNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

PARTS = ("k_norm", "proj", "attn_k", "attn_q_b")
CHOSEN = "chosen tokens"


class SparseLatentAttention(LatentAttention):
    """Latent attention that reads the chosen tokens alone.

    indexer  what chooses them; None: an earlier layer's has
    """

    def __init__(self, hp: Hparams, il: int, *, indexer: Indexer | None, **more: Any) -> None:
        super().__init__(hp, il, **more)
        self.indexer = indexer

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """An indexer that a layer does not use."""
        if self.indexer is None:
            prefix = self.attn_output.weight.name.removesuffix("attn_output.weight")
            yield from (f"{prefix}indexer.{name}.weight" for name in PARTS)
            yield f"{prefix}indexer.k_norm.bias"

    def need(self) -> Need:
        need = super().need()
        if self.indexer is None:
            return need
        assert need.kv is not None
        kv = need.kv._replace(beside=self.indexer.size, turn_beside=self.indexer.turn)
        return replace(need, kv=kv)

    def attended(self, g: GraphBuilder, x: Tensor, low: Tensor, q: Tensor, k: Tensor) -> Tensor:
        beside = None if self.indexer is None else self.indexer.keys(g, x)

        def choose(keys: Tensor, mask: Tensor) -> Tensor:
            if self.indexer is not None:
                g.handed_on[CHOSEN] = self.indexer.chosen(g, x, low, keys, mask)
            return masked(mask, g.handed_on[CHOSEN])

        return g.attend(self.il, q, k, None, scale=self.scale, sinks=self.sinks, beside=beside, choose=choose)


class Indexer(Module):
    """A key of `size` elements a token, and `n_head` queries with a weight each: a token's score is the weighted sum of its
    key's products with the queries, those below 0 left out. The `top_k` best are read.

    rope   how keys and queries are turned: the first elements, or with `last` the last
    eps    of the keys' norm
    """

    def __init__(self, hp: Hparams, rank_q: int, rope: Rope, *, eps: float, last: bool = False) -> None:
        self.n_head = hp.u32("attention.indexer.head_count")
        self.size = hp.u32("attention.indexer.key_length")
        self.top_k = hp.u32("attention.indexer.top_k")
        self.rope = rope
        self.offset = self.size - rope.n_rot if last else 0
        norm, proj = LayerNorm(self.size, eps), Linear(hp.n_embd, self.n_head)
        key, queries = Linear(hp.n_embd, self.size), Linear(rank_q, self.n_head * self.size)
        for name, part in zip(PARTS, (norm, proj, key, queries), strict=True):  # the file's names have a dot
            setattr(self, f"indexer.{name}", part)

    def turn(self, keys: Tensor, positions: Tensor, n_ctx: int) -> Tensor:
        """Keys as a cache holds them (size, 1, n), turned by further positions."""
        return self.rope.turn(keys, positions, n_ctx, self.offset)

    def linear(self, g: GraphBuilder, name: str, x: Tensor) -> Tensor:
        part: Linear = getattr(self, f"indexer.{name}")
        return g.linear(part, x)

    def keys(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """x (n_embd, n_tokens) -> what is kept of each token: (size, n_tokens)."""
        norm: LayerNorm = getattr(self, "indexer.k_norm")
        k = ops.reshape(norm(g, self.linear(g, "attn_k", x)), self.size, 1, g.n_tokens)
        return ops.reshape(self.rope(g, k, self.offset), self.size, g.n_tokens)

    def chosen(self, g: GraphBuilder, x: Tensor, low: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """x (n_embd, n_tokens) and queries' row of low rank, all `keys` (size, n_kv, 1, n_streams) and the mask (n_kv,
        n_tokens of a stream, 1, n_streams) -> the numbers of the cells to be read, I32 (n, n_tokens of a stream, n_streams)."""
        streams = keys.ne[3]
        each = g.n_tokens // streams
        q = ops.reshape(self.linear(g, "attn_q_b", low), self.size, self.n_head, g.n_tokens)
        q = self.rope(g, q, self.offset)
        q = ops.permute(ops.reshape(q, self.size, self.n_head, each, streams), 0, 2, 1, 3)
        weights = ops.scale(self.linear(g, "proj", x), 1.0 / math.sqrt(self.size * self.n_head))
        scores = ops.mul_mat(keys, q, name=f"indexer_kq-{self.il}")  # (n_kv, each, n_head, streams)
        scores = ops.unary(ops.cont(ops.permute(scores, 2, 1, 0, 3)), ops.UnaryOp.RELU)
        scores = ops.sum_rows(ops.mul(scores, ops.reshape(weights, self.n_head, each, 1, streams)))
        scores = ops.cont(ops.permute(scores, 2, 1, 0, 3))  # (n_kv, each, 1, streams)
        scores = ops.add(scores, as_f32(mask), name=f"indexer_score-{self.il}")
        best = ops.top_k(scores, min(self.top_k, scores.ne[0]), name=f"indexer_top_k-{self.il}")
        return ops.reshape(best, best.ne[0], each, streams)


def masked(mask: Tensor, chosen: Tensor) -> Tensor:
    """The mask (n_kv, n_tokens of a stream, 1, n_streams), and minus infinity where a cell is not `chosen`."""
    n_kv, each, _, streams = mask.ne
    all_cells = ops.reshape(as_f32(mask), 1, n_kv, each, streams)
    kept = ops.get_rows(all_cells, chosen)
    sparse = ops.reshape(ops.set_rows(ops.fill(all_cells, float("-inf")), kept, chosen), *mask.ne)
    return sparse if mask.type == GGMLType.F32 else ops.cpy(sparse, Tensor(mask.type, mask.ne))


def as_f32(mask: Tensor) -> Tensor:
    """A mask of any type as F32, the same shape."""
    return mask if mask.type == GGMLType.F32 else ops.cpy(mask, Tensor(GGMLType.F32, mask.ne))
