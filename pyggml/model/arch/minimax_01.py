"""minimax-01: linear attention whose state decays by a factor for each head and layer, and every eighth layer attention;
residuals are what the norms give (llama.cpp: models/minimax-01.cpp)."""

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.memory import Need
from pyggml.memory.recurrent import StateLayer
from pyggml.memory.ubatch import Ubatch
from pyggml.model.attention import Attention
from pyggml.model.experts import Experts
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM, Remembers
from pyggml.model.linear import Linear
from pyggml.model.mlp import silu
from pyggml.model.module import Module
from pyggml.model.norms import RMSNorm
from pyggml.model.rope import Rope
from pyggml.model.states import is_recurrent
from pyggml.tensor import Tensor


class LinearAttention(Remembers):
    """x (n_embd, n_tokens) -> the same: state = state * decay + k v, then state q, a norm and a gate. In llama.cpp the same
    sum is a product of a micro-batch's tokens with each other."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.head, self.n_head = hp.head_k(il), hp.n_head(il)
        n = self.n = self.head * self.n_head
        self.slope_scale = 1.0 - il / max(1, hp.n_layer - 1) + 1e-5
        self.attn_qkv = Linear(hp.n_embd, 3 * n)
        self.attn_gate = Linear(hp.n_embd, n)
        self.attn_norm_2 = RMSNorm.of(hp, n)
        self.attn_output = Linear(n, hp.n_embd)

    def need(self) -> Need:
        return Need(states=StateLayer(self.il, {"linear": self.head * self.n}))

    def slopes(self, ub: Ubatch, _: object) -> NDArray[np.float32]:
        """Of each head: those of ALiBi (llm_graph_input_la::set_input)."""
        start = 2.0 ** -(2.0 ** -(np.log2(self.n_head) - 3))
        slopes: NDArray[np.float32] = (start ** np.arange(1, self.n_head + 1)).astype(np.float32)
        return slopes

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        head, n_head = self.head, self.n_head
        qkv = ops.unary(g.linear(self.attn_qkv, x), ops.UnaryOp.SILU)
        strides = 3 * head * qkv.nb[0], qkv.nb[1]
        q, k, v = (ops.cont(ops.view(qkv, (head, n_head, g.n_tokens), strides, i * head * qkv.nb[0])) for i in range(3))
        slopes = g.shared_input("slopes", GGMLType.F32, 1, n_head, fill=self.slopes)
        decay = ops.unary(ops.scale(slopes, -self.slope_scale), ops.UnaryOp.EXP)
        decay = ops.repeat(decay, head, n_head, g.n_tokens)
        before = g.state(self.il, "linear")
        both = ops.gated_linear_attn(k, v, q, decay, before, 1.0, name=f"gla-{self.il}")
        row = both.nb[1]
        g.set_state(self.il, "linear", ops.view(both, before.ne, (head * row,), g.n_tokens * row))
        cur = self.attn_norm_2(g, ops.view(both, (self.n, g.n_tokens), (row,)))
        gate = ops.unary(g.linear(self.attn_gate, x), ops.UnaryOp.SIGMOID)
        return g.linear(self.attn_output, ops.mul(gate, cur))


class Block(Module):
    """x = attn_norm(x); x = attn(x) + x * scale; the same with ffn_norm and experts."""

    def __init__(self, hp: Hparams, il: int) -> None:
        self.residual = hp.f32("residual_scale")
        self.attn_norm, self.ffn_norm = RMSNorm.of(hp), RMSNorm.of(hp)
        linear = is_recurrent(hp, il, 8)
        self.attn = LinearAttention(hp, il) if linear else Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
        self.ffn = Experts.of(hp, il, hp.n_ff(il), gating="softmax", renormalise=True, activation=silu)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        x = self.attn_norm(g, x)
        cur, x = g.select_outputs(self.il, self.attn(g, x), x)
        x = self.ffn_norm(g, ops.add(cur, ops.scale(x, self.residual), name=f"ffn_inp-{self.il}"))
        return ops.add(self.ffn(g, x), ops.scale(x, self.residual), name=f"l_out-{self.il}")


class Model(CausalLM):
    block = Block
