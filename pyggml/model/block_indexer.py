"""Which blocks of tokens sparse attention reads: for each head of keys those with the best scores of an indexer, and the last
ones (MiniMax M3; llama.cpp: models/minimax-m3.cpp).

Owns the scores of blocks, and the masks that are made of them. A stream's cells are taken for its positions, which they are
where a sequence has a stream of its own and forgets its end alone, or is shifted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.memory.kv import KVCache
from pyggml.memory.ubatch import Ubatch
from pyggml.model.attention import Attention
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.lightning_indexer import as_f32
from pyggml.model.linear import Linear
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

ALWAYS = 1e30
"""What is added to the scores of blocks that are read in any case."""
PARTS = ("q_proj", "k_proj", "q_norm", "k_norm")


class BlockIndexer(Module):
    """A key of `size` elements a token, and a query for each head of keys. A block of `block` tokens is as good as its best
    token; the `top_k` best are read, the last `local` in any case."""

    def __init__(self, hp: Hparams, il: int, rope: Rope) -> None:
        self.n_head, self.size = hp.u32("attention.indexer.head_count"), hp.u32("attention.indexer.key_length")
        if self.n_head != hp.n_head_kv(il):
            full = hp.find("attention.indexer.head_count")[0]
            raise ModelError(f"key {full} is {self.n_head}, must be the number of heads of keys, {hp.n_head_kv(il)}")
        self.top_k = hp.u32("attention.indexer.top_k")
        self.block = hp.u32("attention.indexer.block_size")
        if 256 % self.block:
            full = hp.find("attention.indexer.block_size")[0]
            raise ModelError(f"key {full} is {self.block}, must divide 256")
        self.local = hp.u32("attention.indexer.local_blocks", least=0)
        self.rope = rope
        query, key = Linear(hp.n_embd, self.n_head * self.size), Linear(hp.n_embd, self.size)
        norms = RMSNorm.of(hp, self.size), RMSNorm.of(hp, self.size)
        for name, part in zip(PARTS, (query, key, *norms), strict=True):  # the file's names have a dot
            setattr(self, f"indexer.{name}", part)

    def _heads(self, g: GraphBuilder, x: Tensor, which: str, n: int) -> Tensor:
        matrix: Linear = getattr(self, f"indexer.{which}_proj")
        norm: RMSNorm = getattr(self, f"indexer.{which}_norm")
        return self.rope(g, norm(g, ops.reshape(g.linear(matrix, x), self.size, n, g.n_tokens)))

    def keys(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """x (n_embd, n_tokens) -> what is kept of each token: (size, n_tokens)."""
        return ops.reshape(self._heads(g, x, "k", 1), self.size, g.n_tokens)

    def mask(self, g: GraphBuilder, x: Tensor, keys: Tensor, mask: Tensor, n_head: int) -> Tensor:
        """All `keys` (size, n_kv, 1, n_streams), the mask (n_kv, n_tokens of a stream, 1, n_streams) -> one for each of the
        `n_head` heads of queries, in dimension 2."""
        n_kv, each, _, streams = (*mask.ne[:2], 1, keys.ne[3])
        n, blocks, heads = self.n_head, n_kv // self.block, self.n_head * each * streams
        q = ops.reshape(self._heads(g, x, "q", n), self.size, n, each, streams)
        scores = ops.mul_mat(keys, ops.permute(q, 0, 2, 1, 3), name=f"indexer_kq-{self.il}")
        scores = ops.add(scores, as_f32(mask))  # (n_kv, each, n, streams)
        rows = ops.reshape(scores, self.block, blocks * heads)
        best = ops.reshape(ops.top_k(rows, 1), 1, blocks * heads)
        best = ops.get_rows(ops.reshape(rows, 1, self.block, blocks * heads), best)
        ranked = ops.reshape(best, blocks, each, n, streams)
        ranked = ops.add(ranked, ops.reshape(self._local(g, blocks), blocks, each, 1, streams))
        chosen = ops.top_k(ranked, min(self.top_k, blocks), name=f"indexer_top_k-{self.il}")
        chosen = ops.reshape(chosen, chosen.ne[0], heads)
        ranked = ops.reshape(ranked, 1, blocks, heads)
        kept = ops.fill(ops.get_rows(ranked, chosen), 0.0)
        read = ops.set_rows(ops.fill(ranked, -ALWAYS), kept, chosen)
        cells = ops.reshape(ops.repeat(read, self.block, blocks, heads), n_kv, each, n, streams)
        cells = ops.add(cells, as_f32(mask))
        shared = n_head // n  # heads of queries that read the same keys follow each other
        cells = ops.repeat(ops.reshape(cells, n_kv * each, 1, n, streams), n_kv * each, shared, n, streams)
        cells = ops.reshape(cells, n_kv, each, n_head, streams)
        return ops.cpy(cells, Tensor(GGMLType.F16, cells.ne))

    def _local(self, g: GraphBuilder, blocks: int) -> Tensor:
        """F32 (blocks, n_tokens), one input for all layers."""

        def fill(ub: Ubatch, _: Any) -> NDArray[Any]:
            last = np.asarray(ub.pos, np.int64)[:, None] // self.block
            number = np.arange(blocks)[None, :]
            return np.where((number <= last) & (number > last - self.local), ALWAYS, 0.0).astype(np.float32)

        return g.shared_input("local_blocks", GGMLType.F32, blocks, g.n_tokens, fill=fill)


class BlockSparseAttention(Attention):
    """Attention that reads the chosen blocks alone, where it is fused and sequences share no stream; else all, as llama.cpp."""

    def __init__(self, hp: Hparams, il: int, *, indexer: BlockIndexer, **more: Any) -> None:
        super().__init__(hp, il, **more)
        self.indexer = indexer

    def need(self) -> Need:
        need = super().need()
        assert need.kv is not None
        kv = need.kv._replace(beside=self.indexer.size, turn_beside=self.indexer.rope.turn)
        return replace(need, kv=kv)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        q, k, v = self.place(g, *self.project(g, x))
        cache = g.memory.of(self.il, KVCache)[2]

        def choose(keys: Tensor, mask: Tensor) -> Tensor:
            if cache.transposed_v or cache.cells.shared:
                return mask
            return self.indexer.mask(g, x, keys, mask, self.n_head)

        beside = self.indexer.keys(g, x)
        return self.back(g, x, g.attend(self.il, q, k, v, scale=self.scale, beside=beside, choose=choose))
