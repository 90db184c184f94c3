"""Which tokens sparse attention reads: pools of neighbours with the best scores of an indexer, whose key of a pool is made when its
last token comes, and those of the pool that is not complete (GLM 5.3; llama.cpp: models/glm5-next.cpp, build_kpool_select).

Owns the scores, and the mask that is made of them. A sequence's cells are taken for its positions: it has cells of its own
where pools are kept, and none of them moves.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.memory.blocks import BlockLayer
from pyggml.memory.recurrent import StateLayer
from pyggml.memory.ubatch import Ubatch
from pyggml.model.compressed import BlockInputs, Compressor, Positions
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.lightning_indexer import as_f32, masked
from pyggml.model.linear import Linear
from pyggml.model.module import Module
from pyggml.model.norms import LayerNorm
from pyggml.tensor import Tensor

READ = "tokens of chosen pools"
ALWAYS = 6e4
"""What is added to the score of the pool that is not complete; nearly all that F16 holds."""


class Pools(Compressor):
    """Keys of tokens, normed, of which each element's weights are the soft max of gates; nothing comes after."""

    def parts(self, hp: Hparams) -> dict[str, Module]:
        return {"gate": Linear(hp.n_embd, self.size), "ape": Positions(self.size, self.ratio)}

    def values(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return getattr(self.owner, "indexer.k_norm")(g, g.linear(getattr(self.owner, "indexer.attn_k"), x))  # type: ignore[no-any-return]

    def finished(self, g: GraphBuilder, row: Tensor, at: BlockInputs) -> Tensor:
        return row


class PoolIndexer(Module):
    """`n_head` queries with a weight each for every token: a pool's score is the weighted sum of its key's products with them,
    those below 0 left out. The `top_k` tokens of the best pools are read, and with `tail` those after the last pool."""

    def __init__(self, hp: Hparams, rank: int) -> None:
        self.n_head, self.size = hp.u32("attention.indexer.head_count"), hp.u32("attention.indexer.key_length")
        self.top_k, self.pool = hp.u32("attention.indexer.top_k"), hp.u32("attention.indexer.kpool", least=2)
        self.tail = hp.boolean("attention.indexer.kpool_select_tail", True)
        if self.top_k % self.pool:
            full = hp.find("attention.indexer.top_k")[0]
            raise ModelError(f"key {full} is {self.top_k}, must be pools of {self.pool} tokens (indexer.kpool)")
        parts = {
            "k_norm": LayerNorm(self.size, hp.f32("attention.layer_norm_epsilon", 0.0, positive=False)),
            "proj": Linear(hp.n_embd, self.n_head),
            "attn_k": Linear(hp.n_embd, self.size),
            "attn_q_b": Linear(rank, self.n_head * self.size),
        }
        for name, part in parts.items():  # the file's names have a dot
            setattr(self, f"indexer.{name}", part)
        self.pools = Pools(hp, self, "indexer", self.size, self.pool, None)

    def mask(self, g: GraphBuilder, x: Tensor, low: Tensor, mask: Tensor) -> Tensor:
        """x (n_embd, n_tokens), queries' row of low rank, and the mask (n_kv, n_tokens of a stream, 1, n_streams) -> one that
        leaves the tokens that are read."""
        self.pools(g, x)
        at = BlockInputs(g, self.il)
        n_kv, each, _, streams = mask.ne
        q = ops.reshape(g.linear(getattr(self, "indexer.attn_q_b"), low), self.size, self.n_head, each, streams)
        weights = ops.scale(g.linear(getattr(self, "indexer.proj"), x), 1.0 / math.sqrt(self.size * self.n_head))
        keys = ops.permute(at.read("indexer_row"), 0, 2, 1, 3)
        scores = ops.lightning_indexer(
            q, keys, ops.reshape(weights, self.n_head, each, 1, streams), self._seen(g, at, ALWAYS, GGMLType.F16),
            name=f"indexer_score-{self.il}",
        )  # fmt: skip
        n = min(self.top_k // self.pool + self.tail, scores.ne[0])
        best = ops.top_k(scores, n, name=f"indexer_top_k-{self.il}")
        pools = masked(self._seen(g, at, 0.0, GGMLType.F32), ops.reshape(best, n, each, streams))
        n_pools = pools.ne[0]
        cells = ops.repeat(ops.reshape(pools, 1, n_pools, each, streams), self.pool, n_pools, each, streams)
        cells = ops.reshape(cells, self.pool * n_pools, each, 1, streams)
        if cells.ne[0] < n_kv:  # cells that no token has filled
            ne = (n_kv - cells.ne[0], each, 1, streams)
            fill = lambda ub, _: np.full(ne[0] * ub.n, -np.inf, np.float32)  # noqa: E731
            cells = ops.concat(cells, g.shared_input(f"no_pools_{ne[0]}", GGMLType.F32, *ne, fill=fill), 0)
        elif cells.ne[0] > n_kv:
            cells = ops.cont(ops.view(cells, (n_kv, each, 1, streams), cells.nb[1:]))
        read = ops.add(cells, as_f32(mask), name=f"indexer_sel-{self.il}")
        return read if mask.type == GGMLType.F32 else ops.cpy(read, Tensor(mask.type, mask.ne))

    def _seen(self, g: GraphBuilder, at: BlockInputs, tail: float, dtype: GGMLType) -> Tensor:
        """0 for pools that are complete, `tail` for the one that is not, else minus infinity: (n_pools, n_tokens of a stream, 1,
        n_streams)."""
        numbers, shape = np.float16 if dtype == GGMLType.F16 else np.float32, at.shape

        def fill(ub: Ubatch, placement: Any) -> NDArray[Any]:
            seen = at.blocks.mask(placement.parts[at.part], numbers)
            if self.tail:
                seen[np.arange(ub.n), (ub.pos.astype(np.int64) + 1) // self.pool] = tail
            return seen

        ne = (shape.n_kv, g.n_tokens // shape.n_streams, 1, shape.n_streams)
        return g.shared_input(f"pools_{dtype.name}", dtype, *ne, fill=fill)


class PooledLatentAttention(LatentAttention):
    """Latent attention that reads the tokens of chosen pools alone.

    indexer  what chooses them; None: an earlier layer's has
    """

    def __init__(self, hp: Hparams, il: int, *, chooses: bool, **more: Any) -> None:
        super().__init__(hp, il, **more)
        self.indexer = PoolIndexer(hp, hp.u32("attention.q_lora_rank")) if chooses else None

    def need(self) -> Need:
        need, indexer = super().need(), self.indexer
        if indexer is None:
            return need
        layer = BlockLayer(self.il, indexer.pool, {"indexer_row": indexer.size})
        return replace(need, states=StateLayer(self.il, indexer.pools.states), blocks=layer)

    def attended(self, g: GraphBuilder, x: Tensor, low: Tensor, q: Tensor, k: Tensor) -> Tensor:
        def only(mask: Tensor) -> Tensor:
            if self.indexer is not None:
                g.handed_on[READ] = self.indexer.mask(g, x, low, mask)
            return g.handed_on[READ]

        return g.attend(self.il, q, k, None, scale=self.scale, only=only)
