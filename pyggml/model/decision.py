"""Heads that decide (modern-bert): blocks of their own behind the encoder's, and scores of every token for each kind of question.

Owns the order of their nodes (llama.cpp: models/modern-bert.cpp, build_decision_head); which token's scores count, and of which
kind, the caller knows.
"""

from __future__ import annotations

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.attention import Attention
from pyggml.model.blocks import Block
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.mlp import MLP, relu
from pyggml.model.module import Module, Weight
from pyggml.model.norms import LayerNorm
from pyggml.tensor import Tensor

QUESTIONS = 3
"""Kinds of questions: which option, what score, or none of the options."""


def n_deciding(hp: Hparams) -> int:
    """How many of the last layers are the head's; 0: there is none. Raises ModelError."""
    key = "decision.block_count"
    n = hp.u32(key, 0, least=0)
    if n >= hp.n_layer:
        raise ModelError(f"key {hp.architecture}.{key} is {n}: of {hp.n_layer} layers one at least is the encoder's")
    return n


class DecisionBlock(Block):
    """Without positions and without a window; ReLU, and biases everywhere."""

    def __init__(self, hp: Hparams, il: int) -> None:
        super().__init__(hp, il, norm=LayerNorm)
        self.attn = Attention(hp, il, rope=None)
        self.ffn = MLP(hp.n_embd, hp.n_ff(il), relu)


class QuestionTypes(Module):
    """A row for each kind of question."""

    def __init__(self, n_embd: int) -> None:
        self.weight = Weight(n_embd, QUESTIONS)

    def __call__(self, x: Tensor, kind: int) -> Tensor:
        rows = self.weight.value
        return ops.add(x, ops.view(rows, (rows.ne[0],), (), kind * rows.nb[1]))


class Scorer(Module):
    """(n_embd, n_tokens) -> (1, n_tokens)"""

    def __init__(self, hp: Hparams) -> None:
        self.norm_name, self.out_name = "cls.norm", "cls.output"
        self.cls = Linear(hp.n_embd, hp.n_embd)
        setattr(self, self.norm_name, LayerNorm.of(hp))
        setattr(self, self.out_name, Linear(hp.n_embd, 1))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        norm: LayerNorm = getattr(self, self.norm_name)
        out: Linear = getattr(self, self.out_name)
        return g.linear(out, ops.unary(g.linear(self.cls, norm(g, x)), ops.UnaryOp.GELU_ERF))
