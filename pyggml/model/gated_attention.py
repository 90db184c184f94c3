"""Attention whose result is gated, the gate being a part of the matrix of queries (llama.cpp: models/qwen3next.cpp,
build_layer_attn) or having one of its own (models/afmoe.cpp, laguna.cpp). Owns that order; knows no architecture's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.model.attention import Attention
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.mlp import Activation
from pyggml.model.module import Weight
from pyggml.tensor import Tensor


class GatedAttention(Attention):
    """Of each head attn_q gives queries and as many numbers, whose sigmoids multiply what the head finds."""

    query_parts = 2

    def only(self, g: GraphBuilder, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What makes another mask of the cache's, for a subclass to say."""
        return None

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        both, k, v = self.project(g, x)
        ne, strides = (self.head_k, self.n_head, g.n_tokens), both.nb[1:3]
        q = ops.view(both, ne, strides)
        gate = ops.view(both, ne, strides, self.head_k * both.nb[0])
        gate = ops.cont(gate, self.head_k * self.n_head, g.n_tokens, name=f"gate-{self.il}")
        q, k, v = self.place(g, q, k, v)
        cur = g.attend(self.il, q, k, v, scale=self.scale, only=self.only(g, x))
        return self.back(g, x, ops.mul(cur, ops.unary(gate, ops.UnaryOp.SIGMOID)))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), element by element."""
    return ops.unary(x, ops.UnaryOp.SIGMOID)


def softplus(x: Tensor) -> Tensor:
    """ln(1 + exp(x)), element by element."""
    return ops.unary(x, ops.UnaryOp.SOFTPLUS)


class AttentionAndGate(Attention):
    """What heads find is multiplied by gate(attn_gate(x)), which has a number for each head or each of their elements,
    as the file's matrix has it.

    gate         a function of these numbers
    gate_needed  whether the file must have the matrix; without one, nothing is done
    """

    def __init__(
        self, hp: Hparams, il: int, *, gate: Activation = sigmoid, gate_needed: bool = True, **more: Any
    ) -> None:
        super().__init__(hp, il, **more)
        self.gate = gate
        self.attn_gate = Linear(hp.n_embd, self.head_v * self.n_head, required=gate_needed, plain=True)

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        matrix = self.attn_gate.weight
        if matrix.name in tensors and tensors[matrix.name].ne[1] == self.n_head:
            matrix.ne = (matrix.ne[0], self.n_head)
        yield from super().wanted(tensors)

    def back(self, g: GraphBuilder, x: Tensor, cur: Tensor) -> Tensor:
        if self.attn_gate.weight.there:
            gate, ne = self.gate(g.linear(self.attn_gate, x)), cur.ne[:2]
            if gate.ne[0] == self.n_head:
                cur = ops.reshape(cur, self.head_v, self.n_head, ne[1])
                gate = ops.reshape(gate, 1, self.n_head, ne[1])
            cur = ops.reshape(ops.mul(cur, gate, name=f"attn_gated-{self.il}"), *ne)
        return super().back(g, x, cur)
