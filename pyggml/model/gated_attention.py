"""Attention whose result is gated, the gate being a part of the matrix of queries (llama.cpp: models/qwen3next.cpp,
build_layer_attn). Owns that order; knows no architecture's name.
"""

from __future__ import annotations

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.graph import GraphBuilder
from pyggml.tensor import Tensor


class GatedAttention(Attention):
    """Of each head attn_q gives queries and as many numbers, whose sigmoids multiply what the head finds."""

    query_parts = 2

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        both, k, v = self.project(g, x)
        ne, strides = (self.head_k, self.n_head, g.n_tokens), both.nb[1:3]
        q = ops.view(both, ne, strides)
        gate = ops.view(both, ne, strides, self.head_k * both.nb[0])
        gate = ops.cont(gate, self.head_k * self.n_head, g.n_tokens, name=f"gate-{self.il}")
        q, k, v = self.place(g, q, k, v)
        cur = g.attend(self.il, q, k, v, scale=self.scale)
        return self.back(g, x, ops.mul(cur, ops.unary(gate, ops.UnaryOp.SIGMOID)))
