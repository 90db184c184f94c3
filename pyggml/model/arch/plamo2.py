"""plamo2: layers of attention and of a Mamba with heads, norms before and behind both (llama.cpp: models/plamo2.cpp)."""

import math

from pyggml import ops
from pyggml.memory import Need
from pyggml.memory.recurrent import StateLayer
from pyggml.model.attention import Attention
from pyggml.model.blocks import PreNormBlock
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM, Remembers
from pyggml.model.linear import Linear
from pyggml.model.mamba import one_group, scan
from pyggml.model.mlp import FusedGatedMLP
from pyggml.model.module import Weight
from pyggml.model.norms import BareRMSNorm
from pyggml.model.rope import Rope
from pyggml.model.states import Convolution, StateKeys, by_sequence
from pyggml.tensor import Tensor


class HeadedMamba(Remembers):
    """x (n_embd, n_tokens) -> the same. Each head has a step and a decay; ssm_in gives the gate and what is gated head by
    head, ssm_x what B, C and the steps are made of, in this order."""

    def __init__(self, hp: Hparams, il: int) -> None:
        keys = self.keys = StateKeys.headed(hp, groups=False)
        n_dt = self.n_dt = max(64, hp.n_embd // 16)
        self.ssm_in = Linear(hp.n_embd, 2 * keys.d_inner)
        self.ssm_conv1d = Convolution(keys.d_conv, keys.d_inner)
        self.ssm_x = Linear(keys.d_inner, n_dt + 2 * keys.d_state)
        self.ssm_dt = Linear(n_dt, keys.n_head)
        self.ssm_dt.bias.required = True
        self.ssm_a = Weight(keys.n_head, bare=True)
        self.ssm_d = Weight(keys.n_head, bare=True)
        self.ssm_out = Linear(keys.d_inner, hp.n_embd)
        self.ssm_dt_norm = BareRMSNorm.of(hp, n_dt)
        self.ssm_b_norm = BareRMSNorm.of(hp, keys.d_state)
        self.ssm_c_norm = BareRMSNorm.of(hp, keys.d_state)

    def need(self) -> Need:
        keys = self.keys
        return Need(states=StateLayer(self.il, {"conv": self.ssm_conv1d.size, "ssm": keys.d_state * keys.d_inner}))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        keys, each = self.keys, g.n_tokens // g.n_seqs
        zx = ops.reshape(g.linear(self.ssm_in, x), 2 * keys.head, keys.n_head, g.n_tokens)
        z, inner = (
            ops.cont(ops.view(zx, (keys.head, keys.n_head, g.n_tokens), zx.nb[1:3], at), keys.d_inner, g.n_tokens)
            for at in (0, keys.head * zx.nb[0])
        )
        inner = ops.unary(self.ssm_conv1d(g, by_sequence(g, inner)), ops.UnaryOp.SILU)
        bcdt, at, parts = g.linear(self.ssm_x, ops.reshape(inner, keys.d_inner, g.n_tokens)), 0, []
        for n, norm in (
            (keys.d_state, self.ssm_b_norm),
            (keys.d_state, self.ssm_c_norm),
            (self.n_dt, self.ssm_dt_norm),
        ):
            parts.append(norm(g, ops.view(bcdt, (n, g.n_tokens), (bcdt.nb[1],), at)))
            at += n * bcdt.nb[0]
        b, c, dt = parts
        dt = ops.reshape(g.linear(self.ssm_dt, dt), keys.n_head, each, g.n_seqs)
        inner = ops.reshape(inner, keys.head, keys.n_head, each, g.n_seqs)
        decay = ops.reshape(self.ssm_a.value, 1, keys.n_head)
        y = scan(g, self.il, inner, dt, decay, one_group(g, b), one_group(g, c))
        y = ops.add(y, ops.mul(inner, ops.reshape(self.ssm_d.value, 1, keys.n_head)))
        y = ops.glu(z, ops.reshape(y, keys.d_inner, g.n_tokens), ops.GluOp.SWIGLU, name=f"ssm_y-{self.il}")
        return g.linear(self.ssm_out, y)


class Block(PreNormBlock):
    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il)
        if hp.has_attention(il):
            scale = 1.0 / math.sqrt(hp.head_v(il))
            self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="heads", scale=scale)
        else:
            self.attn = HeadedMamba(hp, il)
        self.post_attention_norm = BareRMSNorm.of(hp)
        self.ffn = FusedGatedMLP(hp.n_embd, hp.n_ff(il))
        self.post_ffw_norm = BareRMSNorm.of(hp)


class Model(CausalLM):
    block = Block
