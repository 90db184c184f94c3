"""Which tokens sparse attention reads: pools of neighbours with the best scores of an indexer, whose key of a pool is made when its
last token comes, and those of the pool that is not complete (GLM 5.3; llama.cpp: models/glm5-next.cpp, build_kpool_select).

Owns the scores, and the mask that is made of them. A sequence's cells are taken for its positions: it has cells of its own
where pools are kept, and none of them moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
from pyggml.model.gated_attention import GatedAttention
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.lightning_indexer import as_f32, masked
from pyggml.model.linear import Linear
from pyggml.model.module import Module
from pyggml.model.norms import LayerNorm, RMSNorm
from pyggml.model.rope import Rope
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
        tail = hp.boolean("attention.indexer.kpool_select_tail", True)
        self.set_sizes(hp, hp.u32("attention.indexer.kpool", least=2), tail)
        parts = {
            "k_norm": LayerNorm(self.size, hp.f32("attention.layer_norm_epsilon", 0.0, positive=False)),
            "proj": Linear(hp.n_embd, self.n_head),
            "attn_k": Linear(hp.n_embd, self.size),
            "attn_q_b": Linear(rank, self.n_head * self.size),
        }
        for name, part in parts.items():  # the file's names have a dot
            setattr(self, f"indexer.{name}", part)
        self.pools: Compressor = Pools(hp, self, "indexer", self.size, self.pool, None)

    def set_sizes(self, hp: Hparams, pool: int, tail: bool) -> None:
        """What the file says of it. Raises ModelError."""
        self.n_head, self.size = hp.u32("attention.indexer.head_count"), hp.u32("attention.indexer.key_length")
        self.top_k, self.pool, self.tail = hp.u32("attention.indexer.top_k"), pool, tail
        if self.top_k % pool:
            full = hp.find("attention.indexer.top_k")[0]
            raise ModelError(f"key {full} is {self.top_k}, must be pools of {pool} tokens")

    def queries(self, g: GraphBuilder, x: Tensor, low: Tensor) -> Tensor:
        """(size * n_head, n_tokens)"""
        return g.linear(getattr(self, "indexer.attn_q_b"), low)

    def weights(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_head, n_tokens)"""
        return ops.scale(g.linear(getattr(self, "indexer.proj"), x), 1.0 / math.sqrt(self.size * self.n_head))

    def mask(self, g: GraphBuilder, x: Tensor, low: Tensor, mask: Tensor) -> Tensor:
        """x (n_embd, n_tokens), queries' row of low rank, and the mask (n_kv, n_tokens of a stream, 1, n_streams) -> one that
        leaves the tokens that are read."""
        self.pools(g, x)
        at = BlockInputs(g, self.il)
        n_kv, each, _, streams = mask.ne
        q = ops.reshape(self.queries(g, x, low), self.size, self.n_head, each, streams)
        weights = self.weights(g, x)
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


class Means(Compressor):
    """The mean of tokens' keys, normed and turned by the position of the first of them."""

    def parts(self, hp: Hparams) -> dict[str, Module]:
        return {}

    @property
    def states(self) -> dict[str, int]:
        return {f"{self.name}_block_kv": self.width * self.n_kept}

    def row(self, g: GraphBuilder, x: Tensor, at: BlockInputs) -> Tensor:
        keys = self._sources(g, at, "kv", g.linear(getattr(self.owner, "indexer.k_proj"), x))
        row = ops.scale(ops.sum_rows(keys), 1.0 / self.ratio)
        return ops.reshape(row, self.size, 1, at.n * g.n_seqs)

    def finished(self, g: GraphBuilder, row: Tensor, at: BlockInputs) -> Tensor:
        assert self.rope is not None
        positions = at.positions4 if self.rope.n_pos > 1 else at.positions
        return self.rope.at(g, getattr(self.owner, "indexer.k_norm")(g, row), positions)


class MeanIndexer(PoolIndexer):
    """Its queries are normed and turned, and all count alike (Qwen 4; llama.cpp: models/qwen4exp.cpp, build_qsa_sel)."""

    def __init__(self, hp: Hparams, pool: int, rope: Rope) -> None:
        self.set_sizes(hp, pool, tail=True)
        self.rope = rope
        parts = {
            "q_proj": Linear(hp.n_embd, self.n_head * self.size), "k_proj": Linear(hp.n_embd, self.size),
            "q_norm": RMSNorm.of(hp, self.size), "k_norm": RMSNorm.of(hp, self.size),
        }  # fmt: skip
        for name, part in parts.items():
            setattr(self, f"indexer.{name}", part)
        self.pools = Means(hp, self, "indexer", self.size, pool, rope)

    def queries(self, g: GraphBuilder, x: Tensor, low: Tensor) -> Tensor:
        q = ops.reshape(g.linear(getattr(self, "indexer.q_proj"), x), self.size, self.n_head, g.n_tokens)
        return self.rope(g, getattr(self, "indexer.q_norm")(g, q))

    def weights(self, g: GraphBuilder, x: Tensor) -> Tensor:
        value = np.float32(1.0 / math.sqrt(self.size))
        fill = lambda ub, _: np.full(self.n_head * ub.n, value)  # noqa: E731
        return g.shared_input("indexer_weights", GGMLType.F32, self.n_head, g.n_tokens, fill=fill)


class PooledGatedAttention(GatedAttention):
    """Gated attention that reads the tokens of chosen pools of `pool` tokens alone."""

    def __init__(self, hp: Hparams, il: int, *, pool: int, rope: Rope, **more: Any) -> None:
        super().__init__(hp, il, rope=rope, **more)
        self.indexer = MeanIndexer(hp, pool, rope)

    def need(self) -> Need:
        indexer = self.indexer
        layer = BlockLayer(self.il, indexer.pool, {"indexer_row": indexer.size})
        return replace(super().need(), states=StateLayer(self.il, indexer.pools.states), blocks=layer)

    def only(self, g: GraphBuilder, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda mask: self.indexer.mask(g, x, x, mask)
