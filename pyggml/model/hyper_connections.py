"""Several streams of embeddings a token, in place of the residual: what a layer reads is a mix of them, and what it says is
added to each with a weight of its own (hyper-connections; llama.cpp: models/hy-v4.cpp, build_hc_pre, build_hc_post).

Owns the weights of both; knows no layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.module import Module, Weight
from pyggml.ops.dsv4_hc import STREAMS
from pyggml.tensor import Tensor


class Numbers(Module):
    """A vector, as it is."""

    def __init__(self, n: int) -> None:
        self.weight = Weight(n)


class Mix(Module):
    """Weights of the streams, by token: sigmoid(scale * product of all streams, normed, + base) + eps; a second time for what is
    added to them, times `magnitude`.

    name     "hc_attn": weights are hc_attn_fn, hc_attn_base, hc_attn_scale
    adds     whether there are weights for what is added too
    """

    def __init__(self, hp: Hparams, name: str, *, adds: bool = True) -> None:
        self.n, self.adds, self.name = hp.u32("hyper_connection.count"), adds, name
        self.eps = hp.f32("hyper_connection.epsilon")
        self.magnitude = hp.f32("hyper_connection.magnitude") if adds else 1.0
        self.norm_eps = hp.rms_eps
        kinds = 2 if adds else 1
        setattr(self, f"{name}_fn", Linear(self.n * hp.n_embd, kinds * self.n, plain=True))
        setattr(self, f"{name}_base", Numbers(kinds * self.n))
        setattr(self, f"{name}_scale", Numbers(kinds))

    def __call__(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (n_embd, n, n_tokens) -> their mix (n_embd, n_tokens), and the weights of what is added (n, n_tokens)."""
        n_embd, n, n_tokens = x.ne[:3]
        matrix: Linear = getattr(self, f"{self.name}_fn")
        mixes = g.linear(matrix, ops.rms_norm(ops.reshape(x, n_embd * n, n_tokens), self.norm_eps))
        read = ops.scale(self._squashed(mixes, 0), 1.0, self.eps)
        parts = [
            ops.mul(
                ops.view(x, (n_embd, n_tokens), (x.nb[2],), i * x.nb[1]),
                ops.view(read, (1, n_tokens), (read.nb[1],), i * read.nb[0]),
            )
            for i in range(n)
        ]
        mixed = parts[0]
        for part in parts[1:]:
            mixed = ops.add(mixed, part)
        if not self.adds:
            return mixed, None
        return mixed, ops.scale(ops.scale(self._squashed(mixes, 1), self.magnitude), 1.0, self.eps)

    def _squashed(self, mixes: Tensor, kind: int) -> Tensor:
        """(n, n_tokens)"""
        base: Numbers = getattr(self, f"{self.name}_base")
        return squashed(mixes, getattr(self, f"{self.name}_scale"), base, self.n, kind)


class Remix(Module):
    """As Mix, and the streams themselves are mixed anew, by a matrix a token whose rows and columns add up to 1 (llama.cpp:
    models/deepseek4.cpp, build_hc_pre, build_hc_post)."""

    def __init__(self, hp: Hparams, name: str) -> None:
        self.n, self.name = hp.u32("hyper_connection.count"), name
        if self.n != STREAMS:
            raise ModelError(f"key {hp.architecture}.hyper_connection.count is {self.n}, must be {STREAMS}")
        self.eps, self.norm_eps = hp.f32("hyper_connection.epsilon"), hp.rms_eps
        self.n_iter = hp.u32("hyper_connection.sinkhorn_iterations")
        n_mixes = (2 + self.n) * self.n
        setattr(self, f"{name}_fn", Linear(self.n * hp.n_embd, n_mixes, plain=True))
        setattr(self, f"{name}_base", Numbers(n_mixes))
        setattr(self, f"{name}_scale", Numbers(3))

    def __call__(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (n_embd, n, n_tokens) -> their mix (n_embd, n_tokens), the weights of what is added (n, n_tokens), and those of
        the streams (n, n, n_tokens)."""
        n_embd, n, n_tokens = x.ne[:3]
        matrix: Linear = getattr(self, f"{self.name}_fn")
        base: Numbers = getattr(self, f"{self.name}_base")
        scale: Numbers = getattr(self, f"{self.name}_scale")
        mixes = g.linear(matrix, ops.rms_norm(ops.reshape(x, n_embd * n, n_tokens), self.norm_eps))
        read = ops.scale(squashed(mixes, scale, base, n, 0), 1.0, self.eps)
        wrote = ops.scale(squashed(mixes, scale, base, n, 1), 2.0)
        comb = ops.dsv4_hc_comb(mixes, scale.weight.value, base.weight.value, self.eps, self.n_iter)
        return ops.dsv4_hc_pre(x, read, name=f"{self.name}_pre-{self.il}"), wrote, comb


class GatedMix(Module):
    """What a layer reads is the mean of the streams, normed, each element times a gate of low rank; weights of what is added are twice
    the sigmoid of a product (llama.cpp: models/qwen4exp.cpp, build_hc_mix, build_hc_combine)."""

    def __init__(self, hp: Hparams, name: str, *, adds: bool = True) -> None:
        self.n, self.name, self.eps, self.adds = hp.u32("hyper_connection.count", least=2), name, hp.rms_eps, adds
        rank, wide = hp.u32("hyper_connection.low_rank"), self.n * hp.n_embd
        setattr(self, f"{name}_norm", StreamWeights(hp.n_embd, self.n))
        setattr(self, f"{name}_down", Linear(wide, rank))
        setattr(self, f"{name}_up", Linear(rank, wide))
        if adds:
            setattr(self, f"{name}_inject", Linear(wide, self.n))

    def __call__(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (n_embd, n, n_tokens) -> what is read (n_embd, n_tokens), and the weights of what is added (n, n_tokens)."""
        norm: StreamWeights = getattr(self, f"{self.name}_norm")
        normed = norm(x, self.eps)
        flat = ops.reshape(normed, x.ne[0] * self.n, x.ne[2])
        low = ops.scale(g.linear(getattr(self, f"{self.name}_down"), flat), 1.0 / self.n)
        gate = g.linear(getattr(self, f"{self.name}_up"), ops.unary(low, ops.UnaryOp.SILU))
        read = ops.dsv4_hc_pre_gated(normed, ops.reshape(gate, *x.ne[:3]), 1.0 / self.n, name=f"{self.name}-{self.il}")
        if not self.adds:
            return read, None
        weights = ops.scale(g.linear(getattr(self, f"{self.name}_inject"), flat), 1.0 / self.n)
        return read, ops.scale(ops.unary(weights, ops.UnaryOp.SIGMOID), 2.0)


class StreamWeights(Module):
    """(n_embd, n): an RMS norm of each stream, with weights of its own; the file may have them in one row."""

    def __init__(self, n_embd: int, n: int) -> None:
        self.weight, self.ne = Weight(n_embd, n), (n_embd, n)

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        found = tensors.get(self.weight.name)
        if found is not None and found.ne[0] == self.ne[0] * self.ne[1]:
            self.weight.ne = found.ne[:1]
        yield self.weight

    def __call__(self, x: Tensor, eps: float) -> Tensor:
        """(n_embd, n, n_tokens) -> the same."""
        return ops.mul(ops.rms_norm(x, eps), ops.reshape(self.weight.value, *self.ne), name=self.label())


def squashed(mixes: Tensor, scale: Numbers, base: Numbers, n: int, kind: int) -> Tensor:
    """sigmoid(scale[kind] * mixes + base), of the `n` numbers a token of this kind: (n, n_tokens)."""
    size = mixes.nb[0]
    part = ops.view(mixes, (n, mixes.ne[1]), (mixes.nb[1],), kind * n * size)
    part = ops.mul(part, ops.view(scale.weight.value, (1,), (), kind * size))
    part = ops.add(part, ops.view(base.weight.value, (n,), (), kind * n * size))
    return ops.unary(part, ops.UnaryOp.SIGMOID)


def added(x: Tensor, cur: Tensor, weights: Tensor) -> Tensor:
    """x (n_embd, n, n_tokens) and cur (n_embd, n_tokens), with a weight a stream (n, n_tokens)."""
    n_embd, n, n_tokens = x.ne[:3]
    each = ops.repeat(ops.reshape(cur, n_embd, 1, n_tokens), n_embd, n, n_tokens)
    return ops.add(x, ops.mul(each, ops.reshape(weights, 1, n, n_tokens)))
