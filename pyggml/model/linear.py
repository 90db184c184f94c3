"""Matrices, as modules declare them; GraphBuilder.linear and linear_id multiply with them.

Owns what may stand beside a matrix in a file: a bias, a scale, the scale of its activations.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from pyggml.dtypes import GGMLType
from pyggml.model.module import Module, Weight


class Linear(Module):
    """A matrix (n_in, n_out), with a bias and a scale where the file has them.

    scale_last  whether the scale counts for the bias too
    plain       the file may hold the matrix alone, no bias and no scale beside it
    """

    def __init__(
        self, n_in: int, n_out: int, *, required: bool = True, scale_last: bool = False, plain: bool = False
    ) -> None:
        self.weight = Weight(n_in, n_out, required=required)
        self.bias = Weight(n_out, required=False)
        self.scale = Weight(1, required=False)
        self.scale_last, self.plain = scale_last, plain

    @property
    def title(self) -> str:
        """What the product's node is called."""
        return self.label()

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        yield self.weight
        if not self.plain and (self.weight.required or self.weight.name in tensors):
            yield self.bias
            yield self.scale

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """Scales of activations, which conversions to NVFP4 leave beside the weights: for devices that quantise with
        them (llama-model.cpp: load_tensors, "input_scale")."""
        if not self.plain and self.weight.name in tensors:
            yield self.weight.name.removesuffix("weight") + "input_scale"


class Output(Linear):
    """The matrix that logits come of, called output.weight; where the file has none, the token embeddings are it.

    biased  whether the file may have a bias
    """

    def __init__(self, n_embd: int, n_vocab: int, *, biased: bool = False) -> None:
        super().__init__(n_embd, n_vocab, plain=True)
        self.biased = biased

    @property
    def title(self) -> str:
        return "result_output"

    def label(self, kind: str = "") -> str:
        return f"result_output{kind}"

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        if self.weight.name not in tensors:
            self.weight.name = "token_embd.weight"
        yield self.weight
        if self.biased:
            yield self.bias
        if self._has_scales(tensors):
            yield self.scale

    def passed_over(self, tensors: Any) -> Iterator[str]:
        if self._has_scales(tensors):
            yield "output.input_scale"

    def _has_scales(self, tensors: Mapping[str, Any]) -> bool:
        """Whether scales may stand beside it: an NVFP4 matrix of its own."""
        return self.weight.name == "output.weight" and tensors[self.weight.name].type == GGMLType.NVFP4


class ExpertLinear(Module):
    """A matrix (n_in, n_out) for each expert, with a bias and a scale each where the file has them."""

    def __init__(self, n_in: int, n_out: int, n_expert: int, *, required: bool = True) -> None:
        self.weight = Weight(n_in, n_out, n_expert, required=required)
        self.bias = Weight(n_out, n_expert, required=False)
        self.scale = Weight(n_expert, required=False)
        self.n_expert = n_expert

    @property
    def title(self) -> str:
        return f"{self.attribute.removesuffix('_exps').replace('_', '_moe_')}-{self.il}"

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        yield self.weight
        if self.weight.name in tensors:
            yield self.bias
            yield self.scale

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        if self.weight.name in tensors:
            yield self.weight.name.removesuffix("weight") + "input_scale"
