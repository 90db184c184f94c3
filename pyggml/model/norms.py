"""Norms, as modules declare them; knows no architecture's name (llama-graph.cpp: build_norm)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor


class Norm(Module):
    """Of each row.

    n         elements of a row
    heads     with a number, the row is a head, and each head has a weight of its own; the file may have them in one row
    required  whether the file must have the weight; without one, nothing is done
    biased    whether the file may have a bias too
    """

    biased = False

    def __init__(self, n: int, eps: float, *, heads: int | None = None, required: bool = True) -> None:
        ne = (n,) if heads is None else (n, heads)
        self.weight = Weight(*ne, required=required)
        self.bias = Weight(*ne, required=False) if self.biased else None
        self.eps, self.ne = eps, ne

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        found = tensors.get(self.weight.name)
        if found is not None and found.ne[0] == math.prod(self.ne):
            self.weight.ne = found.ne[:1]
        yield from super().wanted(tensors)

    @classmethod
    def of(cls, hp: Hparams, n: int | None = None, **more: Any) -> Norm:
        """Of rows of `n` elements, else of the model's."""
        return cls(hp.n_embd if n is None else n, cls.epsilon(hp), **more)

    @staticmethod
    def epsilon(hp: Hparams) -> float:
        """What the file says is added to the variance."""
        raise NotImplementedError

    def normed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def title(self) -> str:
        return "result_norm" if self.attribute == "output_norm" else self.label()

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        if not self.weight.there:
            return x
        weight = self.weight.value if self.weight.ne == self.ne else ops.reshape(self.weight.value, *self.ne)
        if self.bias is None or self.bias.tensor is None:
            return ops.mul(self.normed(x), weight, name=self.title)
        y = ops.mul(self.normed(x), weight, name=self.label("_w"))
        return ops.add(y, self.bias.tensor, name=self.title)


class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * weight."""

    @staticmethod
    def epsilon(hp: Hparams) -> float:
        return hp.rms_eps

    def normed(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.eps)


class BiasedRMSNorm(RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, and a bias where the file has one."""

    biased = True


class LayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * weight, and a bias where the file has one."""

    biased = True

    @staticmethod
    def epsilon(hp: Hparams) -> float:
        return hp.norm_eps

    def normed(self, x: Tensor) -> Tensor:
        return ops.norm(x, self.eps)


class BareRMSNorm(RMSNorm):
    """One whose weight the file calls as the norm alone: blk.0.ffn_norm."""

    def __init__(self, n: int, eps: float, **more: Any) -> None:
        super().__init__(n, eps, **more)
        self.weight.alone = True


class NamedNorm(Module):
    """A norm that the file calls otherwise than the attribute that holds it."""

    def __init__(self, name: str, norm: Norm) -> None:
        self._name = name
        setattr(self, name, norm)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        norm: Norm = getattr(self, self._name)
        return norm(g, x)


class PlainNorm(Module):
    """(x - mean) / sqrt(variance + eps): a layer norm without weights."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    @classmethod
    def of(cls, hp: Hparams, n: int | None = None, **_: Any) -> PlainNorm:
        """Of rows of any length; what else is said of norms is about weights."""
        return cls(hp.norm_eps)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.norm(x, self.eps, name=self.label())


class PlainRMSNorm(PlainNorm):
    """x / sqrt(mean(x^2) + eps): an RMS norm without weights."""

    @classmethod
    def of(cls, hp: Hparams, n: int | None = None, **_: Any) -> PlainRMSNorm:
        return cls(hp.rms_eps)

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.eps, name=self.label())
