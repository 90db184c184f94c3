"""kimi-k3: kimi-linear whose layers read a mixture of earlier sums, with a bounded decay, gated latent attention, bounded
activations, and experts in fewer dimensions (llama.cpp: models/kimi-k3.cpp)."""

import math
from collections.abc import Mapping
from typing import Any

from pyggml import ops
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.kimi_delta import KimiDelta
from pyggml.model.latent_attention import LatentAttention
from pyggml.model.layers import CausalLM
from pyggml.model.linear import Linear
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module, Weight
from pyggml.model.norms import RMSNorm
from pyggml.tensor import Tensor

SUMS = "residual_sums"


class Situ:
    """b tanh(gate / b) sigmoid(gate) * l tanh(up / l); l = 0: times up."""

    def __init__(self, hp: Hparams) -> None:
        self.bound = hp.f32("activation.situ_beta")
        self.bound_up = hp.f32("activation.situ_linear_beta", positive=False)

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        cur = ops.mul(_bounded(gate, self.bound), ops.unary(gate, ops.UnaryOp.SIGMOID))
        return ops.mul(cur, _bounded(up, self.bound_up) if self.bound_up > 0 else up)


def _bounded(x: Tensor, bound: float) -> Tensor:
    return ops.scale(ops.unary(ops.scale(x, 1.0 / bound), ops.UnaryOp.TANH), bound)


class SituMLP(GatedMLP):
    def __init__(self, hp: Hparams, n_ff: int, *, suffix: str = "") -> None:
        super().__init__(hp.n_embd, n_ff, suffix=suffix)
        self.situ = Situ(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        gate, up = g.linear(self.matrix("gate"), x), g.linear(self.matrix("up"), x)
        return g.linear(self.matrix("down"), self.situ(gate, up))


class SituExperts(Experts):
    situ: Situ

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.situ(gate, up)


class LatentExperts(Module):
    """Experts between two matrices, with a norm behind them where the file has it, and one that every token uses."""

    def __init__(self, hp: Hparams, il: int) -> None:
        keys, latent = hp.expert, hp.u32("expert_latent_length", 0, least=0)
        n = latent or hp.n_embd
        self.ffn_routed_down = Linear(hp.n_embd, n, plain=True) if latent else None
        self.ffn_routed_up = Linear(n, hp.n_embd, plain=True) if latent else None
        self.ffn_routed_norm = RMSNorm.of(hp, n, required=False) if latent else None
        self.ffn_gate_inp = Linear(hp.n_embd, hp.n_expert, plain=True)
        self.experts = SituExperts(
            n, keys.n_ff(il), hp.n_expert, hp.n_expert_used, gating=keys.gating or "sigmoid", bias=True,
            renormalise=keys.renormalise, scale=keys.scale, router=False,
        )  # fmt: skip
        self.experts.situ = Situ(hp)
        self.shared = SituMLP(hp, keys.n_ff(il) * max(1, keys.n_shared), suffix="_shexp")

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        inner = x if self.ffn_routed_down is None else g.linear(self.ffn_routed_down, x)
        cur = self.experts(g, inner, g.linear(self.ffn_gate_inp, x))
        if self.ffn_routed_norm is not None and self.ffn_routed_up is not None:
            cur = g.linear(self.ffn_routed_up, self.ffn_routed_norm(g, cur))
        return ops.add(cur, self.shared(g, x), name=f"ffn_out-{self.il}")


class BoundedDelta(KimiDelta):
    """Gates come of one matrix; where the file says a bound, the logarithm of the decay is a sigmoid times that."""

    def declare(self, hp: Hparams) -> None:
        bound = hp.find("kda.gate_lower_bound")[1]
        unbounded = bound is None or (isinstance(bound, float) and bound == -math.inf)
        self.bound = None if unbounded else hp.f32("kda.gate_lower_bound", positive=False)
        self.ssm_a = Weight(self.n_head, bare=True)
        self.ssm_f_a, self.ssm_f_b = Linear(hp.n_embd, self.head), Linear(self.head, self.n)
        self.ssm_g = Linear(hp.n_embd, self.n)

    def gates(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return g.linear(self.ssm_g, x)

    def decay(self, steps: Tensor, a: Tensor) -> Tensor:
        if self.bound is None:
            return super().decay(steps, a)
        falling = ops.scale(ops.mul(steps, a), -1.0)
        return ops.scale(ops.unary(falling, ops.UnaryOp.SIGMOID), self.bound)


class GatedLatentAttention(LatentAttention):
    """Each element of what is found is multiplied by a sigmoid, where the file has their matrix."""

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, rope=None)
        self.attn_gate: Linear = Linear(hp.n_embd, self.n_head * self.head_v, required=False)

    def back(self, g: GraphBuilder, x: Tensor, cur: Tensor) -> Tensor:
        if self.attn_gate.weight.there:
            cur = ops.mul(cur, ops.unary(g.linear(self.attn_gate, x), ops.UnaryOp.SIGMOID))
        return g.linear(self.attn_output, cur)


class Mixture(Module):
    """A sum, and those that layers have put by, with shares: the soft max of products of their norms and a vector."""

    def __init__(self, hp: Hparams) -> None:
        self.weight = Weight(hp.n_embd)
        self.eps = hp.rms_eps

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, n_tokens) -> the same."""
        earlier = g.handed_on.get(SUMS)
        if earlier is None:
            return x
        n_embd, n_tokens, n = *x.ne[:2], earlier.ne[1]
        scores = ops.concat(self._scores(earlier), self._scores(ops.reshape(x, n_embd, 1, n_tokens)), 0)
        shares = ops.soft_max(scores, name=self.label())
        mixed = ops.mul(x, self._share(shares, n))
        for i in range(n):
            one = ops.view(earlier, (n_embd, n_tokens), (earlier.nb[2],), i * earlier.nb[1])
            mixed = ops.add(mixed, ops.mul(one, self._share(shares, i)))
        return mixed

    def _scores(self, x: Tensor) -> Tensor:
        """(n_embd, n, n_tokens) -> (n, n_tokens)"""
        products = ops.sum_rows(ops.mul(ops.rms_norm(x, self.eps), self.weight.value))
        return ops.reshape(products, x.ne[1], x.ne[2])

    @staticmethod
    def _share(shares: Tensor, i: int) -> Tensor:
        return ops.view(shares, (1, shares.ne[1]), (shares.nb[1],), i * shares.nb[0])


class Block(Module):
    """x is a sum of results; every `period`-th layer puts it by and begins a new one."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.period = hp.u32("attn_res.block_size", least=0)
        self.attn_res_score = Mixture(hp) if self.period else None
        self.ffn_res_score = Mixture(hp) if self.period else None
        self.attn_norm, self.ffn_norm = RMSNorm.of(hp), RMSNorm.of(hp)
        self.attn = GatedLatentAttention(hp, il) if hp.has_attention(il) else BoundedDelta(hp, il)
        dense = il < hp.expert.n_dense
        self.ffn = SituMLP(hp, hp.n_ff(il)) if dense else LatentExperts(hp, il)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        mixed = x if self.attn_res_score is None else self.attn_res_score(g, x)
        begins = self.period > 0 and self.il % self.period == 0
        if begins:
            one, earlier = ops.reshape(x, x.ne[0], 1, x.ne[1]), g.handed_on.get(SUMS)
            g.handed_on[SUMS] = one if earlier is None else ops.concat(earlier, one, 1)
        cur = self.attn(g, self.attn_norm(g, mixed))
        x = cur if begins else ops.add(x, cur, name=f"ffn_inp-{self.il}")
        mixed = x if self.ffn_res_score is None else self.ffn_res_score(g, x)
        return ops.add(x, self.ffn(g, self.ffn_norm(g, mixed)), name=f"l_out-{self.il}")


class LastNorm(Module):
    """The last mixture, of which the outputs' columns are normed."""

    def __init__(self, hp: Hparams) -> None:
        self.n_layer = hp.n_layer
        self.output_res_score = Mixture(hp) if hp.u32("attn_res.block_size", least=0) else None
        self.output_norm = RMSNorm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        mixed = x if self.output_res_score is None else self.output_res_score(g, x)
        (mixed,) = g.select_outputs(self.n_layer - 1, mixed)
        return self.output_norm(g, mixed)


class Model(CausalLM):
    block = Block

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self.output_norm = LastNorm(hp)
