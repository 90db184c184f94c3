"""Several versions of each token's embedding, of which a layer computes with one and predicts the others: AltUp (llama.cpp:
models/gemma3n.cpp, altup_predict and altup_correct). A tensor of all versions is (n_embd, n_tokens, N).

Owns how versions are made, predicted, corrected and made one again; knows nothing of what a layer computes.
"""

from __future__ import annotations

from pyggml import ops
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.module import Module, Weight
from pyggml.model.norms import RMSNorm
from pyggml.model.per_layer import slice_of
from pyggml.tensor import Tensor

N = 4
"""Versions; the first is the one that layers compute with (llama-hparams.h: n_altup, i_altup_act)."""


class Vector(Module):
    """What something is multiplied by, elementwise."""

    def __init__(self, n: int) -> None:
        self.weight = Weight(n)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.mul(x, self.weight.value, name=self.label())


class Versions(Module):
    """A matrix for each version but the first, which goes in as it is."""

    def __init__(self, n_embd: int) -> None:
        self.weight = Weight(n_embd, n_embd, N - 1)

    def __call__(self, g: GraphBuilder, x: Tensor, first: Tensor) -> Tensor:
        """x (n_embd, n_tokens, N - 1) -> their products, each token's as long as in `first` (n_embd, n_tokens)."""
        made = g.linear_each(self.weight.value, x, name=self.attribute)
        return ops.div(ops.mul(made, _length(first)), _length(made))

    def split(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, n_tokens) -> (n_embd, n_tokens, N)"""
        return ops.concat(x, self(g, ops.repeat(x, *x.ne[:2], N - 1), x), 2)

    def merge(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, n_tokens, N) -> (n_embd, n_tokens), the mean."""
        total = slice_of(x, 0)
        others = self(g, rest_of(x), total)
        for i in range(N - 1):
            total = ops.add(total, slice_of(others, i))
        return ops.scale(total, 1.0 / N)


class AltUp(Module):
    """Of a layer: all versions predicted before it, and corrected by what it made of the first."""

    def __init__(self, hp: Hparams) -> None:
        self.n_embd = hp.n_embd
        self.altup_router_norm = RMSNorm.of(hp)
        self.altup_router = Linear(hp.n_embd, N, plain=True)
        self.altup_predict_coef = Linear(N, N * N, plain=True)
        self.altup_correct_coef = Linear(N, N, plain=True)

    def _modalities(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n_embd, n_tokens) -> (N, n_tokens)"""
        normed = ops.scale(self.altup_router_norm(g, x), 1.0 / self.n_embd)
        return ops.unary(g.linear(self.altup_router, normed), ops.UnaryOp.TANH)

    def predict(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """All versions, of all versions."""
        coefs = g.linear(self.altup_predict_coef, self._modalities(g, slice_of(x, 0)))
        coefs = ops.reshape(coefs, N, N, x.ne[1])
        each = ops.cont(ops.permute(x, 1, 2, 0, 3))  # (N, n_embd, n_tokens)
        made = ops.cont(ops.permute(ops.mul_mat(each, coefs), 0, 2, 1, 3))
        return ops.add(made, x, name=f"predictions-{self.il}")

    def correct(self, g: GraphBuilder, predictions: Tensor, made: Tensor) -> Tensor:
        """By the difference of what was `made` (n_embd, n_tokens) from what was predicted."""
        difference = ops.sub(made, slice_of(predictions, 0))
        coefs = ops.scale(g.linear(self.altup_correct_coef, self._modalities(g, made)), 1.0, 1.0)
        coefs = ops.cont(ops.transpose(coefs), 1, made.ne[1], N)
        changes = ops.mul(ops.repeat(difference, *made.ne[:2], N), coefs)
        return ops.add(changes, predictions, name=f"corrected-{self.il}")


def rest_of(x: Tensor) -> Tensor:
    """(a, b, n) -> (a, b, n - 1), without the first."""
    return ops.view(x, (*x.ne[:2], x.ne[2] - 1), x.nb[1:3], x.nb[2])


def _length(x: Tensor) -> Tensor:
    """(n, ...) -> (1, ...): the root of the sum of squares."""
    return ops.sqrt(ops.sum_rows(ops.sqr(x)))
