"""The gated delta net: a matrix for each head, which decays and is corrected with each token (llama.cpp: models/qwen35.cpp,
delta-net-base.cpp). Owns the order of its nodes; knows no architecture's name.
"""

from __future__ import annotations

import math

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.memory import Need
from pyggml.memory.recurrent import StateLayer
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Weight
from pyggml.model.norms import RMSNorm
from pyggml.model.states import Bias, Convolution, StateKeys, by_sequence
from pyggml.tensor import Tensor


class DeltaNet(Remembers):
    """x (n_embd, n_tokens) -> the same. Queries, keys and values go through a short convolution, the delta rule, a norm
    and a gate. Fewer heads of keys than of values come again and again."""

    def __init__(self, hp: Hparams, il: int) -> None:
        keys = self.keys = StateKeys.headed(hp)
        if keys.head != keys.d_state:
            raise ModelError(
                f"key {hp.architecture}.ssm.inner_size is {keys.d_inner}, must be time_step_rank x state_size "
                f"({keys.n_head} x {keys.d_state})"
            )
        self.n_qkv = 2 * keys.n_group * keys.d_state + keys.d_inner
        self.eps = hp.rms_eps
        self.project(hp)
        self.ssm_conv1d = Convolution(keys.d_conv, self.n_qkv)
        self.ssm_dt = Bias(keys.n_head)
        self.ssm_a = Weight(keys.n_head, bare=True)
        self.ssm_norm = RMSNorm.of(hp, keys.d_state)
        self.ssm_out = Linear(keys.d_inner, hp.n_embd)

    def project(self, hp: Hparams) -> None:
        """Declare the matrices that x is multiplied with."""
        keys = self.keys
        self.attn_qkv = Linear(hp.n_embd, self.n_qkv)
        self.attn_gate = Linear(hp.n_embd, keys.d_inner)
        self.ssm_beta = Linear(hp.n_embd, keys.n_head)
        self.ssm_alpha = Linear(hp.n_embd, keys.n_head)

    def need(self) -> Need:
        keys = self.keys
        return Need(states=StateLayer(self.il, {"conv": self.ssm_conv1d.size, "delta": keys.d_state * keys.d_inner}))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        keys, each = self.keys, g.n_tokens // g.n_seqs
        qkv, z, beta, alpha = self.projected(g, x)
        beta = ops.unary(ops.reshape(beta, 1, keys.n_head, each, g.n_seqs), ops.UnaryOp.SIGMOID)
        decay = ops.unary(ops.add(alpha, self.ssm_dt.bias.value), ops.UnaryOp.SOFTPLUS)
        decay = ops.mul(decay, self.ssm_a.value, name=f"decay-{self.il}")
        decay = ops.reshape(decay, 1, keys.n_head, each, g.n_seqs)
        mixed = ops.unary(self.ssm_conv1d(g, by_sequence(g, qkv)), ops.UnaryOp.SILU)
        q, k, v = self.parts(mixed)
        q, k = l2_norm(q, self.eps), l2_norm(k, self.eps)
        q, k = self.widened(q), self.widened(k)
        y = delta_rule(g, self.il, q, k, v, decay, beta)
        y = self.gated(ops.reshape(z, *y.ne), self.ssm_norm(g, y))
        return g.linear(self.ssm_out, ops.reshape(y, keys.d_inner, g.n_tokens))

    def gated(self, z: Tensor, y: Tensor) -> Tensor:
        """The normed result, times a function of what gates it."""
        return ops.glu(z, y, ops.GluOp.SWIGLU, name=f"delta_out-{self.il}")

    def projected(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values (n_qkv, n_tokens), what gates the result (d_inner, n_tokens), strengths and steps
        (n_head, n_tokens)."""
        qkv, z = g.linear(self.attn_qkv, x), g.linear(self.attn_gate, x)
        return qkv, z, g.linear(self.ssm_beta, x), g.linear(self.ssm_alpha, x)

    def parts(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n_qkv, tokens of a sequence, sequences) -> queries and keys (d_state, n_group, tokens, sequences), values with
        n_head for n_group."""
        head, n = self.keys.d_state, self.keys.n_group
        found, at = [], 0
        for n_heads in (n, n, self.keys.n_head):
            ne = (head, n_heads, *mixed.ne[1:3])
            found.append(ops.view(mixed, ne, (head * mixed.nb[0], *mixed.nb[1:3]), at))
            at += head * n_heads * mixed.nb[0]
        return found[0], found[1], found[2]

    def widened(self, x: Tensor) -> Tensor:
        """Queries or keys for each head of values; the op has them come again and again."""
        return x


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """Rows divided by their length, as an RMS norm (llama.cpp: models/models.h, build_gdn_l2_norm)."""
    n = x.ne[0]
    return ops.scale(ops.rms_norm(x, eps / n), 1.0 / math.sqrt(n))


def delta_rule(
    g: GraphBuilder, il: int, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: str = "delta"
) -> Tensor:
    """The op, its state read before and kept behind it. Operands as ops.gated_delta_net has them -> (head, n_head, tokens
    of a sequence, sequences)."""
    head, n_head, each, n_seqs = v.ne
    before = ops.reshape(g.state(il, state), head, head, n_head, n_seqs)
    both = ops.gated_delta_net(q, k, v, decay, beta, before, name=f"gdn-{il}")
    size = head * head * n_head
    at = head * n_head * each * n_seqs * both.nb[0]
    g.set_state(il, state, ops.view(both, (size, n_seqs), (size * both.nb[0],), at))
    return ops.view(both, v.ne, (head * both.nb[0], both.nb[1], each * both.nb[1]))
