"""Attention whose keys and values come of one short row a token, the latent one (MLA of DeepSeek V2; llama.cpp:
models/deepseek2.cpp).

Owns both ways to compute it: the cache holds latent rows, and queries and results go through the matrices that keys and
values would come of; or it holds each head's keys and values.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.memory.kv_tensors import KVLayer
from pyggml.model.attention import Sinks, Temperature
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Module, Weight
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.model.rope_options import RopeScaling
from pyggml.tensor import Tensor


def magnitude(scaling: RopeScaling) -> float:
    """What DeepSeek's queries and keys would be multiplied by in a context made longer by yarn: instead, products of both are
    multiplied by its square (deepseek2.cpp: mscale)."""
    growth = 0.1 * math.log(1.0 / scaling.freq_scale)
    return scaling.attn_factor * (1.0 + growth) * (1.0 + scaling.log_multiplier * growth)


class HeadLinear(Module):
    """A matrix (n_in, n_out) for each head."""

    def __init__(self, n_in: int, n_out: int, n_head: int) -> None:
        self.weight = Weight(n_in, n_out, n_head)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_in, n_head, n_tokens) -> (n_out, n_head, n_tokens), a view."""
        y = g.linear_each(self.weight.value, ops.permute(x, 0, 2, 1, 3), name=self.label())
        return ops.permute(y, 0, 2, 1, 3)


class Latent(Remembers):
    """x (n_embd, n_tokens) -> the same. A query is a plain part, `n_plain` elements, and a turned one, `n_rot`; so is a key,
    whose turned part all heads share. What both ways have in common: queries, and the latent rows.

    rope         how the turned parts are turned; None: there are none
    scale        of the products; default 1 / sqrt(length of a query)
    temperature  what queries are multiplied by, by position
    window       tokens that a token sees, itself among them; None: all before it. Layers with a window have sizes of their own
    norm_shared  whether the shared part of keys has a norm (attn_k_norm)
    gated        what is multiplied by the sigmoid of numbers (attn_gate): "heads", one for each, "elements", or None
    sinks        whether there are attention sinks
    """

    def __init__(
        self,
        hp: Hparams,
        il: int,
        *,
        rope: Rope | None,
        scale: float | None = None,
        temperature: Temperature | None = None,
        window: int | None = None,
        norm_shared: bool = False,
        gated: str | None = None,
        sinks: bool = False,
    ) -> None:
        self.rope, self.temperature, self.window = rope, temperature, window
        self.n_head, self.n_rot = hp.n_head(il), hp.n_rot
        mine = "_swa" if window else ""
        self.head_k = hp.u32(f"attention.key_length_mla{mine}", 0, least=0) or hp.head_k(il)
        self.head_v = hp.u32(f"attention.value_length_mla{mine}", 0, least=0) or hp.head_v(il)
        if self.n_rot > self.head_k:
            full = hp.find("rope.dimension_count")[0]
            raise ModelError(f"key {full} is {self.n_rot}, at most {self.head_k}, the length of a query, is possible")
        self.n_plain = self.head_k - self.n_rot
        self.scale = 1.0 / math.sqrt(self.head_k) if scale is None else scale
        self.rank = hp.u32(f"attention.kv_lora_rank{mine}")
        rank_q, n_q = hp.u32("attention.q_lora_rank", 0, least=0), self.n_head * self.head_k
        self.low_rank = rank_q > 0
        if self.low_rank:
            self.attn_q_a = Linear(hp.n_embd, rank_q)
            self.attn_q_a_norm = RMSNorm.of(hp, rank_q)
            self.attn_q_b = Linear(rank_q, n_q)
        else:
            self.attn_q = Linear(hp.n_embd, n_q)
        self.attn_kv_a_mqa = Linear(hp.n_embd, self.rank + self.n_rot)
        self.attn_kv_a_norm = RMSNorm.of(hp, self.rank)
        self.attn_k_norm = RMSNorm.of(hp, self.n_rot) if norm_shared else None
        self.n_gates = self.n_head * (self.head_v if gated == "elements" else 1)
        self.attn_gate = Linear(hp.n_embd, self.n_gates) if gated else None
        self.attn_sinks = Sinks(self.n_head) if sinks else None
        self.attn_output = Linear(self.n_head * self.head_v, hp.n_embd)

    def low_queries(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """What queries come of: x, or its row of low rank, normed."""
        return self.attn_q_a_norm(g, g.linear(self.attn_q_a, x)) if self.low_rank else x

    def queries(self, g: GraphBuilder, low: Tensor) -> Tensor:
        """(head_k, n_head, n_tokens), of what `low_queries` says."""
        q = g.linear(self.attn_q_b if self.low_rank else self.attn_q, low)
        return ops.reshape(q, self.head_k, self.n_head, g.n_tokens)

    def latent(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The latent rows (rank, n_tokens), normed, and the shared part of keys (n_rot, 1, n_tokens), turned, where there is one."""
        both = g.linear(self.attn_kv_a_mqa, x)
        if not self.n_rot:
            return self.attn_kv_a_norm(g, both), None
        row = ops.view(both, (self.rank, g.n_tokens), (both.nb[1],))
        shared = ops.view(both, (self.n_rot, 1, g.n_tokens), (both.nb[1], both.nb[1]), self.rank * both.nb[0])
        if self.attn_k_norm is not None:
            shared = self.attn_k_norm(g, shared)
        if self.rope is not None:
            shared = self.rope(g, shared)
        return self.attn_kv_a_norm(g, row), shared

    def scaled(self, g: GraphBuilder, q: Tensor) -> Tensor:
        return q if self.temperature is None else ops.mul(q, self.temperature.of(g), name=f"q_scaled-{self.il}")

    @property
    def sinks(self) -> Weight | None:
        return None if self.attn_sinks is None else self.attn_sinks.weight

    def back(self, g: GraphBuilder, x: Tensor, cur: Tensor) -> Tensor:
        """What attention found (head_v * n_head, n_tokens) -> (n_embd, n_tokens); `x` is what attention began with."""
        if self.attn_gate is not None:
            gate = ops.unary(g.linear(self.attn_gate, x), ops.UnaryOp.SIGMOID)
            each = ops.reshape(cur, cur.ne[0] // self.n_gates, self.n_gates, g.n_tokens)
            cur = ops.reshape(ops.mul(each, ops.reshape(gate, 1, self.n_gates, g.n_tokens)), *cur.ne)
        return g.linear(self.attn_output, cur)


class LatentAttention(Latent):
    """The cache holds a latent row and the shared part of the key, which all heads use: queries are taken to the rows' space
    by the matrix that keys would come of, and results back by that of the values (absorption)."""

    def __init__(self, hp: Hparams, il: int, **more: Any) -> None:
        super().__init__(hp, il, **more)
        self.attn_k_b = HeadLinear(self.n_plain, self.rank, self.n_head)
        self.attn_v_b = HeadLinear(self.rank, self.head_v, self.n_head)

    def need(self) -> Need:
        turn = None if self.rope is None else partial(self.rope.turn, offset=self.rank)
        return Need(KVLayer(self.il, self.rank + self.n_rot, self.rank, 1, turn, v_in_k=True), self.window)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        low = self.low_queries(g, x)
        q = self.queries(g, low)
        row, shared = self.latent(g, x)
        plain = ops.view(q, (self.n_plain, self.n_head, g.n_tokens), q.nb[1:3])
        k = ops.reshape(row, self.rank, 1, g.n_tokens)
        if shared is None:
            q = self.attn_k_b(g, plain)
        else:
            turned = ops.view(q, (self.n_rot, self.n_head, g.n_tokens), q.nb[1:3], self.n_plain * q.nb[0])
            if self.rope is not None:
                turned = self.rope(g, turned)
            q, k = ops.concat(self.attn_k_b(g, plain), turned, 0), ops.concat(k, shared, 0)
        cur = self.attended(g, x, low, self.scaled(g, q), k)
        cur = self.attn_v_b(g, ops.reshape(cur, self.rank, self.n_head, g.n_tokens))
        return self.back(g, x, ops.cont(cur, self.head_v * self.n_head, g.n_tokens))

    def attended(self, g: GraphBuilder, x: Tensor, low: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The latent rows' sums (rank * n_head, n_tokens); `low` is what the queries came of."""
        return g.attend(self.il, q, k, None, scale=self.scale, sinks=self.sinks)


class ExpandedAttention(Latent):
    """The cache holds each head's keys and values, which are made of the latent row (files without attn_k_b)."""

    def __init__(self, hp: Hparams, il: int, **more: Any) -> None:
        super().__init__(hp, il, **more)
        self.attn_kv_b = Linear(self.rank, self.n_head * (self.n_plain + self.head_v))

    def need(self) -> Need:
        assert self.rope is not None
        turn = partial(self.rope.turn, offset=self.n_plain)
        return Need(KVLayer(self.il, self.head_k, self.head_v, self.n_head, turn), self.window)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        assert self.rope is not None
        q = self.queries(g, self.low_queries(g, x))
        row, shared = self.latent(g, x)
        assert shared is not None, "keys have a part that is turned"
        kv = g.linear(self.attn_kv_b, row)
        strides = (self.n_plain + self.head_v) * kv.nb[0], kv.nb[1]
        v = ops.cont(ops.view(kv, (self.head_v, self.n_head, g.n_tokens), strides, self.n_plain * kv.nb[0]))
        k = ops.repeat(shared, self.n_rot, self.n_head, g.n_tokens)
        if self.n_plain:
            k = ops.concat(ops.view(kv, (self.n_plain, self.n_head, g.n_tokens), strides), k, 0)
        q = self.scaled(g, self.rope(g, q, self.n_plain))
        return self.back(g, x, g.attend(self.il, q, k, v, scale=self.scale, sinks=self.sinks))
