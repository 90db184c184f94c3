"""k2-horizon: norms of groups of elements, of each head of queries and keys with weights of its own, and a gate of what
attention finds; behind the first layers experts, also for values (llama.cpp: models/k2-horizon.cpp)."""

import math
from typing import Any

from pyggml import ops
from pyggml.model.attention import heads
from pyggml.model.blocks import PreNormBlock
from pyggml.model.experts import SMALLEST, Experts, ExpertsAndShared, ProbabilityBias
from pyggml.model.gated_attention import AttentionAndGate, sigmoid, softplus
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.linear import ExpertLinear, Linear
from pyggml.model.mlp import GatedMLP, silu
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.tensor import Tensor


class GroupRMSNorm(RMSNorm):
    """Of each of a row's groups of elements."""

    groups = 1

    @classmethod
    def of(cls, hp: Hparams, n: int | None = None, **more: Any) -> RMSNorm:
        made = cls(hp.n_embd if n is None else n, hp.rms_eps, **more)
        made.groups = hp.u32("attention.group_norm_groups", 0, least=0) or 1
        return made

    def normed(self, x: Tensor) -> Tensor:
        n, n_tokens = x.ne[:2]
        normed = ops.rms_norm(ops.reshape(x, n // self.groups, self.groups, n_tokens), self.eps)
        return ops.reshape(normed, n, n_tokens)


def gate(x: Tensor) -> Tensor:
    """log2(1 + 2^x)"""
    return ops.scale(softplus(ops.scale(x, math.log(2))), 1 / math.log(2))


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=GroupRMSNorm)
        keys = hp.expert
        routed = hp.n_expert > 0 and il >= keys.n_dense
        scaling = hp.scaled_rope(
            beta_fast=hp.f32("rope.scaling.yarn_beta_fast", 32.0, positive=False),
            beta_slow=hp.f32("rope.scaling.yarn_beta_slow", 1.0, positive=False),
        )
        n_values = hp.u32("attention.value_expert_count", 0, least=0) if routed else 0
        self.attn = (AttentionOfValues if n_values else AttentionAndGate)(
            hp, il, rope=Rope(hp, ops.ROPE_NEOX, scaling=scaling), qk_norm="heads", norm_needed=False,
            gate=gate, gate_needed=False,
        )  # fmt: skip
        if not routed:
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))
            return
        experts = Experts.of(hp, il, bias=True, gating=keys.gating or "sigmoid")
        n_ff_shared = keys.n_ff_shared or keys.n_ff(il) * keys.n_shared
        self.ffn = ExpertsAndShared(hp, experts, n_ff_shared) if keys.n_shared else experts


class AttentionOfValues(AttentionAndGate):
    """Values are a sum of what the chosen experts for values make."""

    def __init__(self, hp: Hparams, il: int, **more: Any) -> None:
        super().__init__(hp, il, k_as_v=True, **more)
        self.values = Values(hp, self.head_v * self.n_head_kv)

    def project(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q, k, _ = super().project(g, x)
        return q, k, heads(self.values(g, x), self.head_v, self.n_head_kv)


class Values(Module):
    """x (n_embd, n_tokens) -> (n_v, n_tokens): silu of the products of the chosen experts, each with its share."""

    def __init__(self, hp: Hparams, n_v: int) -> None:
        self.n = hp.u32("attention.value_expert_count")
        self.n_used = hp.u32("attention.value_expert_used_count")
        self.renormalise, self.scale = hp.expert.renormalise, hp.expert.scale
        self.probabilities = ops.soft_max if hp.expert.gating == "softmax" else sigmoid
        self.attn_v_gate = Linear(hp.n_embd, self.n, plain=True)
        self.attn_v_exps = ExpertLinear(hp.n_embd, n_v, self.n)
        self.chosen = Chosen(self.n)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        n_tokens, used = x.ne[1], self.n_used
        probabilities = self.probabilities(g.linear(self.attn_v_gate, x))
        chosen = ops.argsort_top_k(self.chosen(probabilities), used)
        shares = ops.get_rows(ops.reshape(probabilities, 1, self.n, n_tokens), chosen)
        shares = ops.reshape(shares, used, n_tokens)
        if self.renormalise:
            shares = ops.div(shares, ops.clamp(ops.sum_rows(shares), SMALLEST, float("inf")))
        if self.scale != 1.0:
            shares = ops.scale(shares, self.scale)
        made = silu(g.linear_id(self.attn_v_exps, ops.reshape(x, x.ne[0], 1, n_tokens), chosen))
        made = ops.mul(made, ops.reshape(shares, 1, used, n_tokens))
        parts = [ops.view(made, (made.ne[0], n_tokens), (made.nb[2],), i * made.nb[1]) for i in range(used)]
        total = parts[0]
        for part in parts[1:]:
            total = ops.add(total, part)
        return ops.cont(total) if used == 1 else total


class Chosen(Module):
    """Probabilities, and what the file may add to them when experts are chosen (attn_v_gate.bias)."""

    def __init__(self, n: int) -> None:
        self.attn_v_gate = ProbabilityBias(n)

    def __call__(self, probabilities: Tensor) -> Tensor:
        bias = self.attn_v_gate.bias
        return ops.add(probabilities, bias.value) if bias.there else probabilities


class Model(CausalLM):
    block, norm = Block, GroupRMSNorm
