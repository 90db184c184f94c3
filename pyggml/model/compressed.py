"""Attention to the last tokens and to rows that stand for blocks of those before (DeepSeek V4; llama.cpp: models/deepseek4.cpp).

Owns how a block's tokens become a row, and which rows are read; where rows lie is memory/blocks.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.memory.blocks import BlockLayer, Blocks
from pyggml.memory.kv_tensors import KVLayer, KVShape
from pyggml.memory.recurrent import StateLayer
from pyggml.memory.ubatch import Ubatch
from pyggml.model.attention import Sinks
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.hyper_connections import Numbers
from pyggml.model.latent_attention import HeadLinear
from pyggml.model.layers import Remembers
from pyggml.model.lightning_indexer import masked
from pyggml.model.linear import Linear
from pyggml.model.module import Module, Weight
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor

CHOOSES, KEEPS_ALL = 4, 128
"""Tokens of a block: of layers where an indexer chooses the rows that are read, and of those that read all."""


class BlockInputs:
    """Inputs of layers with the same ratio, each made once a graph."""

    def __init__(self, g: GraphBuilder, il: int) -> None:
        self.g = g
        self.part, self.i, self.blocks = g.memory.of(il, Blocks)
        self.shape: KVShape = g.shape.memory[self.part]  # type: ignore[assignment]
        self.ratio, self.each = self.blocks.ratio, g.n_tokens // g.n_seqs
        self.n = self.blocks.n_completed(self.each)  # blocks that are made, of each sequence

    def _input(self, name: str, dtype: GGMLType, *ne: int, fill: Any) -> Tensor:
        return self.g.shared_input(f"blocks{self.ratio}_{name}", dtype, *ne, fill=fill)

    @property
    def phase(self) -> Tensor:
        """I32 (n_tokens): a token's place in its block."""
        ratio = self.ratio
        return self._input("phase", GGMLType.I32, self.g.n_tokens, fill=lambda ub, _: ub.pos % np.int32(ratio))

    @property
    def rows(self) -> Tensor:
        """I64: where the blocks that are made come to lie."""
        fill = lambda ub, _: self.blocks.completed(ub).rows.reshape(-1)  # noqa: E731
        return self._input("rows", GGMLType.I64, self.n * self.g.n_seqs, fill=fill)

    @property
    def positions(self) -> Tensor:
        """I32: the position of each block's first token."""
        fill = lambda ub, _: self.blocks.completed(ub).pos.reshape(-1)  # noqa: E731
        return self._input("pos", GGMLType.I32, self.n * self.g.n_seqs, fill=fill)

    @property
    def positions4(self) -> Tensor:
        """I32: the same four times, for positions of several axes."""
        fill = lambda ub, _: np.tile(self.blocks.completed(ub).pos.reshape(-1), 4)  # noqa: E731
        return self._input("pos4", GGMLType.I32, 4 * self.n * self.g.n_seqs, fill=fill)

    def sources(self, n_kept: int, before: int) -> Tensor:
        """I32 (ratio * n, n_seqs): among `n_kept` tokens that are kept and those of the micro-batch, the tokens of each block, or
        of the one `before` it."""
        ratio = self.ratio

        def fill(ub: Ubatch, _: Any) -> NDArray[np.int32]:
            done = self.blocks.completed(ub)
            first = np.where(done.real, n_kept + done.first - before * ratio, n_kept)
            each = first[:, :, None] + np.where(done.real, 1, 0)[:, :, None] * np.arange(ratio)
            return np.maximum(each, 0).astype(np.int32).reshape(-1)

        return self._input(f"sources_{before}", GGMLType.I32, ratio * self.n, self.g.n_seqs, fill=fill)

    @property
    def nothing_before(self) -> Tensor:
        """F32 (2 ratio, 1, n * n_seqs): minus infinity for the block before the first, which there is not, else 0."""
        ratio = self.ratio

        def fill(ub: Ubatch, _: Any) -> NDArray[np.float32]:
            done = self.blocks.completed(ub)
            value = np.zeros((done.pos.size, 2 * ratio), np.float32)
            value[(done.real & (done.pos == 0)).reshape(-1), :ratio] = -np.inf
            return value

        return self._input("before", GGMLType.F32, 2 * ratio, 1, self.n * self.g.n_seqs, fill=fill)

    def mask(self, fused: bool) -> Tensor:
        """(n_kv, n_tokens of a stream, 1, n_streams), F16 or F32."""
        shape, dtype = self.shape, GGMLType.F16 if fused else GGMLType.F32
        numbers = np.float16 if fused else np.float32

        def fill(_: Ubatch, placement: Any) -> NDArray[Any]:
            return self.blocks.mask(placement.parts[self.part], numbers)

        ne = (shape.n_kv, self.g.n_tokens // shape.n_streams, 1, shape.n_streams)
        return self._input(f"mask_{dtype.name}", dtype, *ne, fill=fill)

    def read(self, name: str) -> Tensor:
        """(elements, n_kv, 1, n_streams)"""
        return self.blocks.read(self.i, name, self.shape)


class Compressor:
    """Makes one row of each block's tokens: the sum of their values, each element with weights of its own, which are the soft max
    of what the tokens say; normed and turned by the position of the first of them. With `overlap` the tokens of the block before
    count too, by the first half of what they say, and those of the block by the second half.

    name  "attn": weights are attn_compressor_kv, ..._gate, ..._ape and ..._norm
    """

    def __init__(
        self, hp: Hparams, owner: Any, name: str, size: int, ratio: int, rope: Rope | None, *, overlap: bool = False
    ) -> None:
        self.owner, self.name, self.size, self.ratio, self.rope, self.overlap = owner, name, size, ratio, rope, overlap
        self.width = size * (2 if overlap else 1)
        self.n_kept = ratio * (2 if overlap else 1)  # tokens
        for part, module in self.parts(hp).items():
            setattr(owner, f"{name}_compressor_{part}", module)

    def parts(self, hp: Hparams) -> dict[str, Module]:
        """Its weights."""
        return {
            "kv": Linear(hp.n_embd, self.width),
            "gate": Linear(hp.n_embd, self.width),
            "ape": Positions(self.width, self.ratio),
            "norm": RMSNorm.of(hp, self.size),
        }

    def values(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """What is added up of each token: (width, n_tokens)."""
        return g.linear(self._part("kv"), x)

    def finished(self, g: GraphBuilder, row: Tensor, at: BlockInputs) -> Tensor:
        """The sums (size, 1, blocks) -> what is kept of them."""
        assert self.rope is not None
        return self.rope.at(g, self._part("norm")(g, row), at.positions, self.size - self.rope.n_rot)

    def _part(self, which: str) -> Any:
        return getattr(self.owner, f"{self.name}_compressor_{which}")

    @property
    def states(self) -> dict[str, int]:
        """What the last tokens say is kept until their block is complete."""
        return {f"{self.name}_block_{which}": self.width * self.n_kept for which in ("kv", "score")}

    def __call__(self, g: GraphBuilder, x: Tensor) -> None:
        """Keep the rows of the blocks that x (n_embd, n_tokens) completes."""
        at = BlockInputs(g, self.owner.il)
        row = self.finished(g, self.row(g, x, at), at)
        g.store(at.blocks.write(at.i, f"{self.name}_row", ops.reshape(row, self.size, row.ne[2]), at.rows))

    def row(self, g: GraphBuilder, x: Tensor, at: BlockInputs) -> Tensor:
        """The sums: (size, 1, blocks)."""
        score = ops.add(g.linear(self._part("gate"), x), ops.get_rows(self._part("ape").weight.value, at.phase))
        values = self._sources(g, at, "kv", self.values(g, x))
        scores = self._sources(g, at, "score", score)
        if self.overlap:
            scores = ops.add(scores, at.nothing_before)
        row = ops.sum_rows(ops.mul(values, ops.soft_max(scores)))  # (1, size, blocks)
        return ops.reshape(row, self.size, 1, at.n * g.n_seqs)

    def _sources(self, g: GraphBuilder, at: BlockInputs, which: str, new: Tensor) -> Tensor:
        """What the tokens of each block say, (tokens, size, blocks); the last ones are kept."""
        il, name, n_seqs = self.owner.il, f"{self.name}_block_{which}", g.n_seqs
        kept = ops.reshape(g.state(il, name), self.width, self.n_kept, n_seqs)
        both = ops.concat(kept, ops.reshape(new, self.width, at.each, n_seqs), 1)
        last = ops.view(both, (self.width, self.n_kept, n_seqs), both.nb[1:3], at.each * both.nb[1])
        g.set_state(il, name, ops.cont(last, self.width * self.n_kept, n_seqs))
        parts = []
        for before in (1, 0) if self.overlap else (0,):
            rows = ops.get_rows(both, at.sources(self.n_kept, before))
            if self.overlap:
                offset = (1 - before) * self.size * rows.nb[0]
                rows = ops.cont(ops.view(rows, (self.size, *rows.ne[1:3]), rows.nb[1:3], offset))
            parts.append(ops.reshape(rows, self.size, self.ratio, at.n * n_seqs))
        of_both = parts[0] if len(parts) == 1 else ops.concat(parts[0], parts[1], 1)
        return ops.cont(ops.permute(of_both, 1, 0, 2, 3))


class Positions(Numbers):
    """(n, ratio): what is added to scores by a token's place in its block."""

    def __init__(self, n: int, ratio: int) -> None:
        self.weight = Weight(n, ratio)


class BlockChooser:
    """Which rows are read: the `top_k` with the best scores of an indexer, whose keys are rows of blocks too."""

    def __init__(self, hp: Hparams, owner: Any, rank: int, rope: Rope) -> None:
        self.n_head, self.size = hp.u32("attention.indexer.head_count"), hp.u32("attention.indexer.key_length")
        self.top_k = hp.u32("attention.indexer.top_k")
        self.owner, self.rope = owner, rope
        if self.size < rope.n_rot:
            full = hp.find("attention.indexer.key_length")[0]
            raise ModelError(f"key {full} is {self.size}, must be at least rope.dimension_count, {rope.n_rot}")
        setattr(owner, "indexer.proj", Linear(hp.n_embd, self.n_head))
        setattr(owner, "indexer.attn_q_b", Linear(rank, self.n_head * self.size))
        self.compressor = Compressor(hp, owner, "indexer", self.size, CHOOSES, rope, overlap=True)

    def mask(self, g: GraphBuilder, x: Tensor, low: Tensor, at: BlockInputs, fused: bool) -> Tensor:
        """x (n_embd, n_tokens) and queries' row of low rank -> the mask of the rows that are read."""
        streams = at.shape.n_streams
        each = g.n_tokens // streams
        q = ops.reshape(g.linear(getattr(self.owner, "indexer.attn_q_b"), low), self.size, self.n_head, g.n_tokens)
        q = self.rope(g, q, self.size - self.rope.n_rot)
        weights = g.linear(getattr(self.owner, "indexer.proj"), x)
        weights = ops.scale(weights, 1.0 / math.sqrt(self.size * self.n_head))
        keys = ops.permute(at.read("indexer_row"), 0, 2, 1, 3)
        scores = ops.lightning_indexer(
            ops.reshape(q, self.size, self.n_head, each, streams), keys,
            ops.reshape(weights, self.n_head, each, 1, streams), at.mask(fused=True), name=f"indexer_score-{self.owner.il}",
        )  # fmt: skip
        best = ops.top_k(scores, min(self.top_k, scores.ne[0]), name=f"indexer_top_k-{self.owner.il}")
        return masked(at.mask(fused), ops.reshape(best, best.ne[0], each, streams))


class CompressedAttention(Remembers):
    """x (n_embd, n_tokens) -> the same. One head of keys, which are values too; queries of low rank, normed by head; results are
    turned back, and go through a matrix for each group of heads.

    ratio  tokens of a block: 4, 128, or 0: the layer reads the last tokens alone
    """

    def __init__(self, hp: Hparams, il: int, ratio: int, rope: Rope) -> None:
        self.ratio, self.rope, self.window, self.eps = ratio, rope, hp.windows.size, hp.rms_eps
        self.n_head, self.head = hp.n_head(il), hp.head_k(il)
        self.offset = self.head - rope.n_rot
        self.n_groups = hp.u32("attention.output_group_count")
        if self.n_head % self.n_groups:
            full = hp.find("attention.output_group_count")[0]
            raise ModelError(f"key {full} is {self.n_groups}, must divide the {self.n_head} heads")
        rank, self.rank_o = hp.u32("attention.q_lora_rank"), hp.u32("attention.output_lora_rank")
        self.attn_q_a, self.attn_q_b = Linear(hp.n_embd, rank), Linear(rank, self.n_head * self.head)
        self.attn_q_a_norm = RMSNorm.of(hp, rank)
        self.attn_kv, self.attn_kv_a_norm = Linear(hp.n_embd, self.head), RMSNorm.of(hp, self.head)
        self.attn_sinks = Sinks(self.n_head)
        self.attn_output_a = GroupLinear(self.n_head * self.head // self.n_groups, self.rank_o, self.n_groups)
        self.attn_output_b = Linear(self.n_groups * self.rank_o, hp.n_embd)
        self.compressor = (
            Compressor(hp, self, "attn", self.head, ratio, rope, overlap=ratio == CHOOSES) if ratio else None
        )
        self.chooser = BlockChooser(hp, self, rank, rope) if ratio == CHOOSES else None

    def need(self) -> Need:
        def turn(keys: Tensor, positions: Tensor, n_ctx: int) -> Tensor:
            return self.rope.turn(keys, positions, n_ctx, self.offset)

        kv = KVLayer(self.il, self.head, self.head, 1, turn, v_in_k=True)
        if self.compressor is None:
            return Need(kv, self.window)
        compressors = [self.compressor, *([self.chooser.compressor] if self.chooser else ())]
        states = {name: n for one in compressors for name, n in one.states.items()}
        rows = {f"{one.name}_row": one.size for one in compressors}
        return Need(kv, self.window, StateLayer(self.il, states), blocks=BlockLayer(self.il, self.ratio, rows))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        low = self.attn_q_a_norm(g, g.linear(self.attn_q_a, x))
        q = ops.rms_norm(ops.reshape(g.linear(self.attn_q_b, low), self.head, self.n_head, g.n_tokens), self.eps)
        k = ops.reshape(self.attn_kv_a_norm(g, g.linear(self.attn_kv, x)), self.head, 1, g.n_tokens)
        q, k = self.rope(g, q, self.offset), self.rope(g, k, self.offset)
        cur = g.attend(
            self.il,
            q,
            k,
            None,
            scale=1.0 / math.sqrt(self.head),
            sinks=self.attn_sinks.weight,
            more=self._more(g, x, low),
        )
        cur = ops.reshape(cur, self.head, self.n_head, g.n_tokens)
        cur = self.rope.at(g, cur, g.positions, self.offset, back=True)
        cur = self.attn_output_a(g, ops.reshape(cur, self.attn_output_a.n_in, self.n_groups, g.n_tokens))
        return g.linear(self.attn_output_b, ops.cont(cur, self.n_groups * self.rank_o, g.n_tokens))

    def _more(self, g: GraphBuilder, x: Tensor, low: Tensor) -> tuple[Tensor, Tensor] | None:
        """The rows of blocks that tokens read, and their mask."""
        if self.compressor is None:
            return None
        self.compressor(g, x)
        at, fused = BlockInputs(g, self.il), not g.transposed_v(self.il)
        if self.chooser is None:
            return at.read("attn_row"), at.mask(fused)
        self.chooser.compressor(g, x)
        return at.read("attn_row"), self.chooser.mask(g, x, low, at, fused)


class GroupLinear(HeadLinear):
    """A matrix for each group of heads, which the file may hold one below the other."""

    def __init__(self, n_in: int, n_out: int, n: int) -> None:
        super().__init__(n_in, n_out, n)
        self.n_in, self.n_out, self.n = n_in, n_out, n

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        found = tensors.get(self.weight.name)
        if found is not None and found.ne[1] == self.n_out * self.n:
            self.weight.ne = (self.n_in, self.n_out * self.n)
        yield from super().wanted(tensors)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_in, n, n_tokens) -> (n_out, n, n_tokens), a view."""
        weight = self.weight.value
        if self.n > 1 and weight.ne[2] == 1:
            weight = ops.reshape(weight, self.n_in, self.n_out, self.n)
        return ops.permute(g.linear_each(weight, ops.permute(x, 0, 2, 1, 3), name=self.label()), 0, 2, 1, 3)
