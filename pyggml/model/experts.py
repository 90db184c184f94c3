"""Feed-forward networks of which each token uses a few (llama-graph.cpp: build_moe_ffn).

Owns the choice of experts, their shares and the sum; knows no architecture.
"""

from __future__ import annotations

from pyggml import ops
from pyggml.model.graph import GraphBuilder
from pyggml.model.linear import ExpertLinear, Linear
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor

GATINGS = ("softmax", "sigmoid", "softmax_weight")
"""Probabilities of all experts by soft max or by sigmoid; softmax_weight: soft max of the chosen experts' logits."""


class Experts(Module):
    """x (n_embd, n_tokens) -> the same: the `n_used` experts with the largest probabilities, each with its share.

    gating       one of GATINGS
    bias         whether the file has numbers that are added to the probabilities when experts are chosen (exp_probs_b)
    renormalise  shares are divided by their sum
    scale        and multiplied by this
    """

    def __init__(
        self,
        n_embd: int,
        n_ff: int,
        n_expert: int,
        n_used: int,
        *,
        gating: str = "softmax",
        bias: bool = False,
        renormalise: bool = True,
        scale: float = 1.0,
        kind: ops.GluOp = ops.GluOp.SWIGLU,
    ) -> None:
        assert gating in GATINGS, gating
        self.n_expert, self.n_used, self.kind = n_expert, n_used, kind
        self.gating, self.renormalise, self.scale = gating, renormalise, scale
        self.ffn_gate_inp = Linear(n_embd, n_expert, plain=True)
        self.exp_probs_b = ProbabilityBias(n_expert) if bias else None
        self.ffn_gate_exps = ExpertLinear(n_embd, n_ff, n_expert, required=False)
        self.ffn_up_exps = ExpertLinear(n_embd, n_ff, n_expert)
        self.ffn_down_exps = ExpertLinear(n_ff, n_embd, n_expert)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        n_tokens, used, il = x.ne[1], self.n_used, self.il
        chosen, shares = self.choose(g, g.linear(self.ffn_gate_inp, x))
        g.expand(il, shares)
        cur = ops.reshape(x, x.ne[0], 1, n_tokens)
        up = g.linear_id(self.ffn_up_exps, cur, chosen)
        if self.ffn_gate_exps.weight.there:
            cur = ops.glu(g.linear_id(self.ffn_gate_exps, cur, chosen), up, self.kind)
        else:
            cur = ops.unary(up, ops.UnaryOp.SILU, name=f"ffn_moe_silu-{il}")
        cur = g.linear_id(self.ffn_down_exps, cur, chosen)
        cur = ops.mul(cur, ops.reshape(shares, 1, used, n_tokens), name=f"ffn_moe_weighted-{il}")
        parts = [ops.view(cur, (cur.ne[0], n_tokens), (cur.nb[2],), i * cur.nb[1]) for i in range(used)]
        total = parts[0]
        for part in parts[1:]:
            total = ops.add(total, part)
        return total

    def choose(self, g: GraphBuilder, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits (n_expert, n_tokens) -> the chosen ones I32 (n_used, n_tokens), and their shares F32, as many."""
        used, n_tokens, il = self.n_used, logits.ne[1], self.il
        plain = self.gating == "softmax" and self.renormalise and self.exp_probs_b is None
        if plain or self.gating == "softmax_weight":
            # probabilities divided by the sum of the chosen ones are the soft max of the chosen logits
            chosen = ops.argsort_top_k(logits, used, name=f"ffn_moe_topk-{il}")
            shares = self._of(logits, chosen)
            shares = ops.soft_max(ops.reshape(shares, used, n_tokens), name=f"ffn_moe_weights-{il}")
            return chosen, self._scaled(shares)
        if self.gating == "sigmoid":
            probs = ops.unary(logits, ops.UnaryOp.SIGMOID, name=f"ffn_moe_probs-{il}")
        else:
            probs = ops.soft_max(logits, name=f"ffn_moe_probs-{il}")
        ranked = probs if self.exp_probs_b is None else ops.add(probs, self.exp_probs_b.bias.value)
        chosen = ops.argsort_top_k(ranked, used, name=f"ffn_moe_topk-{il}")
        shares = ops.reshape(self._of(probs, chosen), used, n_tokens)
        if self.renormalise:  # the sum is at least the smallest normal F16, as in llama.cpp
            total = ops.clamp(ops.sum_rows(shares), 6.103515625e-5, float("inf"))
            shares = ops.div(shares, total, name=f"ffn_moe_weights_norm-{il}")
        return chosen, self._scaled(shares)

    def _of(self, values: Tensor, chosen: Tensor) -> Tensor:
        return ops.get_rows(ops.reshape(values, 1, self.n_expert, values.ne[1]), chosen)

    def _scaled(self, shares: Tensor) -> Tensor:
        return shares if self.scale == 1.0 else ops.scale(shares, self.scale)


class ProbabilityBias(Module):
    """What is added to the experts' probabilities when they are chosen."""

    def __init__(self, n_expert: int) -> None:
        self.bias = Weight(n_expert)
