"""Attention with grouped queries, and what architectures vary in it (llama-graph.cpp: build_qkv, build_attn).

Owns the projections and the order of their nodes; where keys and values are kept is the memory's business.
"""

from __future__ import annotations

import math

from pyggml import ops
from pyggml.memory import Need
from pyggml.memory.kv_tensors import KVLayer
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import Remembers, RMSNorm
from pyggml.model.linear import Linear
from pyggml.model.module import Module, Weight
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class Sinks(Module):
    """A number a head that takes part in the soft max and in no sum."""

    def __init__(self, n_head: int) -> None:
        self.weight = Weight(n_head)


class Attention(Remembers):
    """x (n_embd, n_tokens) -> the same. Biases count where the file has them.

    rope     how queries and keys are turned; None: they know no position
    qk_norm  RMS norms of each head of queries and keys, before they are turned
    window   tokens that a token sees, itself among them; None: all before it
    sinks    whether there are attention sinks
    scale    of the products; default 1 / sqrt(head size)
    softcap  scores are softcap * tanh(scores / softcap); 0: as they are
    fused    the file may hold one matrix attn_qkv in place of attn_q, attn_k and attn_v
    """

    def __init__(
        self,
        hp: Hparams,
        il: int,
        *,
        rope: Rope | None,
        qk_norm: bool = False,
        window: int | None = None,
        sinks: bool = False,
        scale: float | None = None,
        softcap: float = 0.0,
        fused: bool = False,
    ) -> None:
        self.window, self.softcap = window, softcap
        self.head_k, self.head_v = hp.head_k(il), hp.head_v(il)
        self.n_head, self.n_head_kv = hp.n_head(il), hp.n_head_kv(il)
        self.scale = 1.0 / math.sqrt(self.head_k) if scale is None else scale
        n_q, n_k, n_v = self.head_k * self.n_head, self.head_k * self.n_head_kv, self.head_v * self.n_head_kv
        self.rope = rope
        if fused:
            self.attn_qkv = Linear(hp.n_embd, n_q + n_k + n_v, required=False)
        self.fused = fused
        self.attn_q = Linear(hp.n_embd, n_q, required=not fused)
        self.attn_k = Linear(hp.n_embd, n_k, required=not fused)
        self.attn_v = Linear(hp.n_embd, n_v, required=not fused)
        self.attn_output = Linear(self.head_v * self.n_head, hp.n_embd)
        self.qk_norm = qk_norm
        if qk_norm:
            self.attn_q_norm = RMSNorm(self.head_k, hp.rms_eps)
            self.attn_k_norm = RMSNorm(self.head_k, hp.rms_eps)
        self.attn_sinks = Sinks(self.n_head) if sinks else None

    def need(self) -> Need:
        turn = None if self.rope is None else self.rope.turn
        return Need(KVLayer(self.il, self.head_k, self.head_v, self.n_head_kv, turn), self.window)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        q, k, v = self.project(g, x)
        if self.qk_norm:
            q, k = self.attn_q_norm(g, q), self.attn_k_norm(g, k)
        if self.rope is not None:
            q, k = self.rope(g, q), self.rope(g, k)
        sinks = None if self.attn_sinks is None else self.attn_sinks.weight
        cur = g.attend(self.il, q, k, v, scale=self.scale, softcap=self.softcap, sinks=sinks)
        return g.linear(self.attn_output, cur)

    def project(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (head_k, n_head, n_tokens), keys (head_k, n_head_kv, n_tokens), values (head_v, n_head_kv, n_tokens)."""
        shapes = (self.head_k, self.n_head), (self.head_k, self.n_head_kv), (self.head_v, self.n_head_kv)
        if self.fused and self.attn_qkv.weight.there:
            qkv, at, parts = g.linear(self.attn_qkv, x), 0, []
            for head, n in shapes:
                nb1 = head * qkv.nb[0]
                parts.append(ops.view(qkv, (head, n, g.n_tokens), (nb1, qkv.nb[1]), at))
                at += nb1 * n
            return parts[0], parts[1], parts[2]
        q, k, v = (
            ops.reshape(g.linear(matrix, x), head, n, g.n_tokens)
            for matrix, (head, n) in zip((self.attn_q, self.attn_k, self.attn_v), shapes, strict=True)
        )
        return q, k, v
