"""Embeddings of tokens for each layer, beside those that go in at the front (llama.cpp: models/gemma3n.cpp and gemma4.cpp,
build_inp_per_layer, project_per_layer_inputs). Owns how they are made and how a layer takes its own in.
"""

from __future__ import annotations

import math

from pyggml import ops
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.mlp import gelu
from pyggml.model.module import Module, Weight
from pyggml.model.norms import RMSNorm
from pyggml.tensor import Tensor

NAME = "inp_per_layer"
"""What the tensor of all layers' embeddings is handed on as: (n, n_tokens, n_layer)."""


class PerLayerTable(Module):
    """Rows of n_layer * n elements, one a token."""

    at_input = True

    def __init__(self, n: int, n_layer: int, n_vocab: int) -> None:
        self.weight = Weight(n * n_layer, n_vocab)

    def __call__(self, g: GraphBuilder) -> Tensor:
        """(n_layer * n, n_tokens)"""
        return g.rows(self.weight, self.il, "inp_per_layer_selected")


class PerLayerProjection(Module):
    """What the table says of a token, and a product of its embedding, added. Belongs to the first layer, whose device it is
    on; the names of its weights say nothing of that."""

    def __init__(self, hp: Hparams, n: int) -> None:
        self.n, self.n_layer = n, hp.n_layer
        self.factor = 1.0 / math.sqrt(hp.n_embd)
        self.per_layer_model_proj = Linear(hp.n_embd, n * hp.n_layer, plain=True)
        self.per_layer_proj_norm = RMSNorm.of(hp, n)
        for weight in (self.per_layer_model_proj.weight, self.per_layer_proj_norm.weight):
            weight.shared = True

    def __call__(self, g: GraphBuilder, table: Tensor | None, x: Tensor) -> Tensor:
        """The table's rows (n_layer * n, n_tokens), if there is one, embeddings (n_embd, n_tokens) -> (n, n_tokens, n_layer)"""
        shape = self.n, self.n_layer, g.n_tokens
        projected = ops.reshape(ops.scale(g.linear(self.per_layer_model_proj, x), self.factor), *shape)
        both = self.per_layer_proj_norm(g, projected)
        if table is not None:
            selected = ops.reshape(ops.scale(table, math.sqrt(self.n)), *shape)
            both = ops.scale(ops.add(both, selected), 1.0 / math.sqrt(2.0))
        return ops.cont(ops.permute(both, 0, 2, 1, 3), name=NAME)


class PerLayerInput(Module):
    """x (n_embd, n_tokens) -> norm(proj(gelu(inp_gate(x)) * the layer's embeddings)), of the same shape."""

    def __init__(self, hp: Hparams, n: int) -> None:
        self.inp_gate = Linear(hp.n_embd, n, plain=True)
        self.proj = Linear(n, hp.n_embd, plain=True)
        self.post_norm = RMSNorm.of(hp)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        given = slice_of(g.handed_on[NAME], self.il)
        if x.ne[1] < g.n_tokens:
            (given,) = g.select_outputs(self.il, given)
        cur = ops.mul(gelu(g.linear(self.inp_gate, x)), given)
        return self.post_norm(g, g.linear(self.proj, cur))


def slice_of(x: Tensor, i: int) -> Tensor:
    """(a, b, n) -> (a, b), the one of number i."""
    return ops.view(x, x.ne[:2], x.nb[1:2], i * x.nb[2])
