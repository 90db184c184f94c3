"""Kimi delta attention: the gated delta net with a decay for each element of a key, and a convolution each for queries, keys
and values (llama.cpp: models/kimi-linear.cpp). Owns the order of its nodes; knows no architecture's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.memory import Need
from pyggml.memory.recurrent import StateLayer
from pyggml.model.delta_net import delta_rule, l2_norm
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Weight
from pyggml.model.norms import RMSNorm
from pyggml.model.states import Bias, Convolution, by_sequence
from pyggml.tensor import Tensor


class KimiDelta(Remembers):
    """x (n_embd, n_tokens) -> the same. What decays and what gates come of matrices of low rank; others are a subclass's to
    declare and to apply."""

    def __init__(self, hp: Hparams, il: int) -> None:
        head, n_head = self.head, self.n_head = hp.u32("kda.head_dim"), hp.n_head(0)
        n = self.n = head * n_head
        self.eps = hp.rms_eps
        self.attn_qkv = Linear(hp.n_embd, 3 * n, required=False)
        self.attn_q, self.attn_k, self.attn_v = (Linear(hp.n_embd, n) for _ in range(3))
        d_conv = hp.u32("ssm.conv_kernel", least=2)
        self.ssm_conv1d_q, self.ssm_conv1d_k, self.ssm_conv1d_v = (
            Convolution(d_conv, n, state=f"conv_{which}", flat=False) for which in "qkv"
        )
        self.declare(hp)
        self.ssm_beta = Linear(hp.n_embd, n_head)
        self.ssm_dt = Bias(n)
        self.ssm_norm = RMSNorm.of(hp, head)
        self.attn_output = Linear(n, hp.n_embd)

    def declare(self, hp: Hparams) -> None:
        """The weights of what decays and of what gates."""
        self.ssm_a = Weight(1, self.n_head, bare=True)
        self.ssm_f_a, self.ssm_f_b = Linear(hp.n_embd, self.head), Linear(self.head, self.n)
        self.ssm_g_a, self.ssm_g_b = Linear(hp.n_embd, self.head), Linear(self.head, self.n)

    def steps(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n, n_tokens)"""
        return g.linear(self.ssm_f_b, g.linear(self.ssm_f_a, x))

    def gates(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n, n_tokens)"""
        return g.linear(self.ssm_g_b, g.linear(self.ssm_g_a, x))

    def decay(self, steps: Tensor, a: Tensor) -> Tensor:
        """The logarithm of what keys' elements decay by, of steps (head, n_head, n_tokens), a (1, n_head)."""
        return ops.mul(ops.unary(steps, ops.UnaryOp.SOFTPLUS), a)

    def need(self) -> Need:
        convolutions = self.ssm_conv1d_q, self.ssm_conv1d_k, self.ssm_conv1d_v
        sizes = {one.state: one.size for one in convolutions}
        return Need(states=StateLayer(self.il, {**sizes, "delta": self.head * self.n}))

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        for matrix in (self.attn_q, self.attn_k, self.attn_v):
            matrix.weight.required = self.attn_qkv.weight.name not in tensors
        yield from super().wanted(tensors)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        head, n_head, each, n_seqs = self.head, self.n_head, g.n_tokens // g.n_seqs, g.n_seqs
        ne = head, n_head, each, n_seqs
        q, k, v = (
            ops.reshape(ops.unary(convolution(g, by_sequence(g, part)), ops.UnaryOp.SILU), *ne)
            for convolution, part in zip(
                (self.ssm_conv1d_q, self.ssm_conv1d_k, self.ssm_conv1d_v), self._projected(g, x), strict=True
            )
        )
        steps = ops.add(self.steps(g, x), self.ssm_dt.bias.value)
        decay = self.decay(ops.reshape(steps, head, n_head, g.n_tokens), ops.reshape(self.ssm_a.value, 1, n_head))
        beta = ops.unary(ops.reshape(g.linear(self.ssm_beta, x), 1, *ne[1:]), ops.UnaryOp.SIGMOID)
        y = delta_rule(g, self.il, l2_norm(q, self.eps), l2_norm(k, self.eps), v, ops.reshape(decay, *ne), beta)
        gate = ops.unary(ops.reshape(self.gates(g, x), *ne), ops.UnaryOp.SIGMOID)
        y = ops.mul(self.ssm_norm(g, y), gate, name=f"kda_out-{self.il}")
        return g.linear(self.attn_output, ops.reshape(y, self.n, g.n_tokens))

    def _projected(self, g: GraphBuilder, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, (n, n_tokens) each."""
        if not self.attn_qkv.weight.there:
            return [g.linear(matrix, x) for matrix in (self.attn_q, self.attn_k, self.attn_v)]
        qkv = g.linear(self.attn_qkv, x)
        return [ops.view(qkv, (self.n, g.n_tokens), (qkv.nb[1],), i * self.n * qkv.nb[0]) for i in range(3)]
