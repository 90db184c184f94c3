"""Attention that knows positions by how far tokens are apart: a number for each head and each of a few buckets of distances is
added to scores. And T5's feed-forward network.

Owns the buckets (llama-graph.cpp: llama_relative_position_bucket) and their inputs; knows no architecture's name.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.memory import Need
from pyggml.memory.cells import FREE
from pyggml.memory.kv import KVCache
from pyggml.memory.ubatch import Ubatch
from pyggml.model.attention import Attention
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.mlp import relu
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor

FARTHEST = 128  # tokens; all that lie farther are in one bucket


def buckets(away: NDArray[np.int64], n: int) -> NDArray[np.int32]:
    """Of `n` buckets that of a token so far behind (below 0) or ahead: half of them are for each side."""
    return np.where(away > 0, n // 2, 0).astype(np.int32) + _by_distance(np.abs(away), n // 2)


def buckets_behind(away: NDArray[np.int64], n: int) -> NDArray[np.int32]:
    """The same where all `n` are for tokens behind; those ahead, which nobody sees, count as near."""
    return _by_distance(np.maximum(-away, 0), n)


def _by_distance(far: NDArray[np.int64], n: int) -> NDArray[np.int32]:
    """Half of `n` buckets are for one distance each, the others grow with it."""
    exact = n // 2
    ratio = np.log((np.maximum(far, 1) / exact).astype(np.float32))  # in the reference's precision, step by step
    steps = exact + (ratio * np.float32(n - exact)).astype(np.float64) / np.log(FARTHEST / exact)
    grown = np.minimum(np.floor(steps.astype(np.float32)).astype(np.int64), n - 1)
    return np.where(far < exact, far, grown).astype(np.int32)


class RelativeBias(Module):
    """A number for each head and bucket. What the first layer makes of them is handed on to those that have none."""

    def __init__(self, hp: Hparams, il: int, *, behind: bool = False) -> None:
        """behind  tokens see those behind them alone, in a cache"""
        self.n = hp.u32("attention.relative_buckets_count", least=4)
        self.behind, self.first = behind, not il
        self.weight = Weight(hp.n_head(il), self.n, required=not il)

    @property
    def _title(self) -> str:
        return "pos_bias_dec" if self.behind else "pos_bias"

    def __call__(self, g: GraphBuilder) -> Tensor:
        """F32 (cells or tokens seen, tokens of each stream, n_head, n_streams)"""
        if self._title in g.handed_on and (self.first or self.weight.tensor is None):
            return g.handed_on[self._title]
        bias = self._in_cache(g) if self.behind else self._in_batch(g)
        if self.first:
            g.handed_on[self._title] = bias
        return bias

    def _in_batch(self, g: GraphBuilder) -> Tensor:
        n = g.n_tokens

        def fill(ub: Ubatch, _: Any) -> NDArray[np.int32]:
            pos = ub.pos.astype(np.int64)
            return buckets(pos[None, :] - pos[:, None], self.n).reshape(-1)

        return self._bias(g.shared_input("pos_bucket_enc", GGMLType.I32, n * n, fill=fill), n, n, 1)

    def _in_cache(self, g: GraphBuilder) -> Tensor:
        part, _, cache = g.memory.of(self.il, KVCache)
        shape, _ = g.kv_inputs(part, cache)
        each = g.n_tokens // shape.n_streams

        def fill(ub: Ubatch, placement: Any) -> NDArray[np.int32]:
            seen = cache.positions(placement.parts[part]).astype(np.int64)
            by = ub.pos.astype(np.int64).reshape(shape.n_streams, each)
            away = np.where(seen == FREE, -1, seen)[:, None, :] - by[:, :, None]
            return buckets_behind(away, self.n).reshape(-1)

        places = g.shared_input("pos_bucket_dec", GGMLType.I32, shape.n_kv * g.n_tokens, fill=fill)
        return self._bias(places, shape.n_kv, each, shape.n_streams)

    def _bias(self, places: Tensor, *ne: int) -> Tensor:
        rows = ops.get_rows(self.weight.value, places)
        rows = ops.reshape(rows, rows.ne[0], *ne)
        return ops.cont(ops.permute(rows, 2, 0, 1, 3), name=f"{self._title}-{self.il}")


class RelativeAttention(Attention):
    """Its matrix for the result is called attn_o; scores have no scale.

    behind  tokens see those behind them, which a cache keeps; else all tokens of the micro-batch, of which nothing is kept
    """

    def __init__(self, hp: Hparams, il: int, *, behind: bool = False) -> None:
        super().__init__(hp, il, rope=None, scale=1.0)
        self.attn_o = self.attn_output
        del self.attn_output
        self.attn_rel_b = RelativeBias(hp, il, behind=behind)
        self.behind = behind

    def need(self) -> Need:
        return super().need() if self.behind else Need()

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        q, k, v = self.project(g, x)
        return g.linear(self.attn_o, g.attend(self.il, q, k, v, scale=self.scale, bias=self.attn_rel_b(g)))


class T5MLP(Module):
    """down(relu(up(x))), or where there is a gate down(gelu(gate(x)) * up(x))."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.ffn_gate = Linear(hp.n_embd, hp.n_ff(il), required=False)
        self.ffn_up = Linear(hp.n_embd, hp.n_ff(il))
        self.ffn_down = Linear(hp.n_ff(il), hp.n_embd)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        up = g.linear(self.ffn_up, x)
        if self.ffn_gate.weight.there:
            return g.linear(self.ffn_down, ops.glu(g.linear(self.ffn_gate, x), up, ops.GluOp.GEGLU))
        return g.linear(self.ffn_down, relu(up))
