"""Feed-forward networks of which each token uses a few (llama-graph.cpp: build_moe_ffn).

Owns the choice of experts, their shares and the sum; knows no architecture.
"""

from __future__ import annotations

from typing import Any

from pyggml import ops
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import ExpertLinear, Linear
from pyggml.model.mlp import Activation, GatedMLP, silu
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor

GATINGS = ("softmax", "sigmoid", "softmax_weight", "sqrt_softplus")
"""How logits become probabilities: soft max, sigmoid or sqrt(softplus) of each; softmax_weight: soft max of the chosen
experts' logits alone."""

SMALLEST = 6.103515625e-5
"""What sums of shares are at least: the smallest normal F16, as in llama.cpp."""


class Experts(Module):
    """x (n_embd, n_tokens) -> the same: the `n_used` experts with the largest probabilities, each with its share.

    gating       one of GATINGS
    bias         whether the file may have numbers that are added to the probabilities when experts are chosen (exp_probs_b)
    renormalise  shares are divided by their sum
    scale        and multiplied by this
    kind         of the gated networks
    activation   of those without a gate; None: the file must have the gates
    alpha, limit numbers of SWIGLU_OAI and SWIGLU_CLAMP
    groups       (n, used): experts are chosen from `used` of `n` groups, those with the best two experts; None: from all
    rank_logits  experts are chosen by logits, before they become probabilities
    weight_first shares multiply what goes into the experts, not what comes out
    router_bias  whether the router may have a bias
    by_token     with a number of tokens: a table says which experts each of them uses (ffn_gate_tid2eid), the router their shares
    router       whether it has a router of its own; else whoever calls it gives logits
    suffix       what the matrices' names end in
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
        activation: Activation | None = None,
        alpha: float = 0.0,
        limit: float = 0.0,
        groups: tuple[int, int] | None = None,
        rank_logits: bool = False,
        weight_first: bool = False,
        router_bias: bool = False,
        by_token: int = 0,
        router: bool = True,
        suffix: str = "_exps",
    ) -> None:
        assert gating in GATINGS, gating
        self.n_expert, self.n_used, self.kind, self.activation = n_expert, n_used, kind, activation
        self.gating, self.renormalise, self.scale = gating, renormalise, scale
        self.alpha, self.limit, self.groups = alpha, limit, groups
        self.rank_logits, self.weight_first = rank_logits, weight_first
        self.ffn_gate_inp = Linear(n_embd, n_expert, plain=not router_bias) if router else None
        self.exp_probs_b = ProbabilityBias(n_expert) if bias else None
        self.ffn_gate_tid2eid = TokenTable(n_used, by_token) if by_token else None
        self.suffix = suffix
        for name, n_in, n_out in (
            ("gate_up", n_embd, 2 * n_ff),
            ("gate", n_embd, n_ff),
            ("up", n_embd, n_ff),
            ("down", n_ff, n_embd),
        ):
            needed = name != "gate_up" and (name != "gate" or activation is None)
            setattr(self, f"ffn_{name}{suffix}", ExpertLinear(n_in, n_out, n_expert, required=needed))

    def matrix(self, name: str) -> ExpertLinear:
        """gate_up, gate, up or down."""
        found: ExpertLinear = getattr(self, f"ffn_{name}{self.suffix}")
        return found

    @classmethod
    def of(cls, hp: Hparams, il: int, n_ff: int = 0, **more: Any) -> Experts:
        """As the file's keys say, but for what is said here. `n_ff` counts where the file has no number for experts."""
        keys = hp.expert
        said: dict[str, Any] = {"renormalise": keys.renormalise, "scale": keys.scale}
        if keys.gating is not None:
            said["gating"] = keys.gating
        if keys.n_groups > 1:
            said["groups"] = (keys.n_groups, keys.n_groups_used)
        return cls(hp.n_embd, keys.n_ff(il) or n_ff or hp.n_ff(il), hp.n_expert, hp.n_expert_used, **said | more)

    def wanted(self, tensors: Any) -> Any:
        fused = self.matrix("gate_up").weight.name in tensors
        self.matrix("up").weight.required = not fused
        self.matrix("gate").weight.required = not fused and self.activation is None
        yield from super().wanted(tensors)

    def __call__(self, g: GraphBuilder, x: Tensor, logits: Tensor | None = None) -> Tensor:
        """`logits`: the router's (n_expert, n_tokens), where it does not read x."""
        n_tokens, used, il = x.ne[1], self.n_used, self.il
        if logits is None:
            assert self.ffn_gate_inp is not None, "no router, and no logits"
            logits = g.linear(self.ffn_gate_inp, x)
        chosen, shares = self.choose(g, logits)
        g.expand(il, shares)
        cur = ops.reshape(x, x.ne[0], 1, n_tokens)
        each = ops.reshape(shares, 1, used, n_tokens)
        if self.weight_first:
            cur = ops.mul(ops.repeat(cur, x.ne[0], used, n_tokens), each)
        cur = g.linear_id(self.matrix("down"), self._inside(g, cur, chosen), chosen)
        if not self.weight_first:
            cur = ops.mul(cur, each, name=f"ffn_moe_weighted-{il}")
        parts = [ops.view(cur, (cur.ne[0], n_tokens), (cur.nb[2],), i * cur.nb[1]) for i in range(used)]
        total = parts[0]
        for part in parts[1:]:
            total = ops.add(total, part)
        return ops.cont(total) if used == 1 else total

    def _inside(self, g: GraphBuilder, x: Tensor, chosen: Tensor) -> Tensor:
        """What goes into the experts' last matrix."""
        if self.matrix("gate_up").weight.there:
            both = g.linear_id(self.matrix("gate_up"), x, chosen)
            half, strides = both.ne[0] // 2, both.nb[1:3]
            gate = ops.view(both, (half, *both.ne[1:3]), strides)
            up = ops.view(both, (half, *both.ne[1:3]), strides, half * both.nb[0])
            return self._gated(gate, up)
        up = g.linear_id(self.matrix("up"), x, chosen)
        if self.matrix("gate").weight.there:
            return self._gated(g.linear_id(self.matrix("gate"), x, chosen), up)
        assert self.activation is not None
        return self.activation(up)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.limit and self.kind == ops.GluOp.SWIGLU:
            up = ops.clamp(up, -self.limit, self.limit)
            return ops.mul(ops.clamp(silu(gate), float("-inf"), self.limit), up)
        return ops.glu(gate, up, self.kind, alpha=self.alpha, limit=self.limit)

    def choose(self, g: GraphBuilder, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits (n_expert, n_tokens) -> the chosen ones I32 (n_used, n_tokens), and their shares F32, as many."""
        used, n_tokens, il = self.n_used, logits.ne[1], self.il
        plain = (
            not self.ffn_gate_tid2eid
            and self.gating == "softmax"
            and self.renormalise
            and self.exp_probs_b is None
            and self.groups is None
        )
        if plain or self.gating == "softmax_weight":
            # probabilities divided by the sum of the chosen ones are the soft max of the chosen logits
            chosen = ops.argsort_top_k(logits, used, name=f"ffn_moe_topk-{il}")
            shares = self._of(logits, chosen)
            shares = ops.soft_max(ops.reshape(shares, used, n_tokens), name=f"ffn_moe_weights-{il}")
            return chosen, self._scaled(shares)
        probs = self._probabilities(logits)
        ranked = logits if self.rank_logits else probs
        if self.exp_probs_b is not None and self.exp_probs_b.bias.tensor is not None:
            ranked = ops.add(probs, self.exp_probs_b.bias.tensor)
        if self.groups is not None:
            ranked = self._in_groups(ranked, *self.groups)
        if self.ffn_gate_tid2eid is not None:
            chosen = ops.get_rows(self.ffn_gate_tid2eid.weight.value, g.tokens, name=f"ffn_moe_topk-{il}")
        else:
            chosen = ops.argsort_top_k(ranked, used, name=f"ffn_moe_topk-{il}")
        shares = ops.reshape(self._of(probs, chosen), used, n_tokens)
        if self.renormalise:
            total = ops.clamp(ops.sum_rows(shares), SMALLEST, float("inf"))
            shares = ops.div(shares, total, name=f"ffn_moe_weights_norm-{il}")
        return chosen, self._scaled(shares)

    def _probabilities(self, logits: Tensor) -> Tensor:
        name = f"ffn_moe_probs-{self.il}"
        if self.gating == "sigmoid":
            return ops.unary(logits, ops.UnaryOp.SIGMOID, name=name)
        if self.gating == "sqrt_softplus":
            return ops.sqrt(ops.unary(logits, ops.UnaryOp.SOFTPLUS), name=name)
        return ops.soft_max(logits, name=name)

    def _in_groups(self, ranked: Tensor, n: int, used: int) -> Tensor:
        """Minus infinity for experts outside of the `used` best of `n` groups; a group is as good as its best two."""
        n_tokens = ranked.ne[1]
        each = self.n_expert // n
        groups = ops.reshape(ranked, each, n, n_tokens)
        best = ops.argsort_top_k(groups, 2)
        best = ops.get_rows(ops.reshape(groups, 1, each, n, n_tokens), best)  # (1, 2, n, n_tokens)
        scores = ops.reshape(ops.sum_rows(ops.reshape(best, 2, n, n_tokens)), n, n_tokens)
        chosen = ops.argsort_top_k(scores, used)
        kept = ops.get_rows(groups, chosen)
        ranked = ops.set_rows(ops.fill(groups, float("-inf")), kept, chosen)
        return ops.reshape(ranked, self.n_expert, n_tokens)

    def _of(self, values: Tensor, chosen: Tensor) -> Tensor:
        return ops.get_rows(ops.reshape(values, 1, values.ne[0], values.ne[1]), chosen)

    def _scaled(self, shares: Tensor) -> Tensor:
        return shares if self.scale == 1.0 else ops.scale(shares, self.scale)


class TokenTable(Module):
    """I32 (n_used, n_vocab): the experts of each token."""

    def __init__(self, n_used: int, n_vocab: int) -> None:
        self.weight = Weight(n_used, n_vocab)


class ProbabilityBias(Module):
    """What is added to the experts' probabilities when they are chosen, where the file has it."""

    def __init__(self, n_expert: int) -> None:
        self.bias = Weight(n_expert, required=False)


class ExpertsAndShared(Module):
    """Experts that a token chooses, and one that every token uses (ffn_gate_shexp, ...), added.

    gated  the latter is multiplied by the sigmoid of a product (ffn_gate_inp_shexp)
    more   of the latter: kind, limit, alpha (GatedMLP)
    """

    def __init__(self, hp: Hparams, experts: Experts, n_ff_shared: int, *, gated: bool = False, **more: Any) -> None:
        self.experts = experts
        self.shared = GatedMLP(hp.n_embd, n_ff_shared, suffix="_shexp", **more)
        self.ffn_gate_inp_shexp = Linear(hp.n_embd, 1, plain=True) if gated else None

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        cur, shared = self.experts(g, x), self.shared(g, x)
        if self.ffn_gate_inp_shexp is not None:
            gate = ops.unary(
                g.linear(self.ffn_gate_inp_shexp, x), ops.UnaryOp.SIGMOID, name=f"shared_expert_gate-{self.il}"
            )
            shared = ops.mul(shared, gate)
        return ops.add(cur, shared, name=f"ffn_out-{self.il}")


def clamped(hp: Hparams, il: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What experts of SWIGLU_CLAMP are told of layer `il`, and those that every token uses, which go by the others' limit
    where the file has none of theirs."""
    keys, own = hp.expert, hp.find("swiglu_clamp_shexp")[1] is not None
    limit, shared = keys.limits[il], (keys.limits_shared if own else keys.limits)[il]
    kind = ops.GluOp.SWIGLU_CLAMP
    return {"kind": kind, "limit": limit} if limit else {}, {"kind": kind, "limit": shared} if shared else {}
