"""Models of which the file says by its tensors which layers have experts (llama.cpp: models/mimo2.cpp, step35.cpp, hy-v3.cpp).

Owns that choice; knows no architecture's name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Iterator, Mapping
from typing import Any

from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.mlp import GatedMLP
from pyggml.model.module import Module


class RoutedLM(CausalLM):
    """A layer has experts where the file has a router for it, and a dense network elsewhere. The blocks come without."""

    def __init__(self, hp: Hparams, tensors: Mapping[str, Any]) -> None:
        super().__init__(hp, tensors)
        self._routed = [f"blk.{il}.ffn_gate_inp.weight" in tensors for il in range(hp.n_layer)]
        for il, (block, routed) in enumerate(zip(self.blk, self._routed, strict=True)):
            block.ffn = self.experts(hp, il) if routed else self.dense(hp, il)

    @abstractmethod
    def experts(self, hp: Hparams, il: int) -> Module:
        """The network of a layer that has a router."""

    def dense(self, hp: Hparams, il: int) -> Module:
        """That of one that has none."""
        return GatedMLP(hp.n_embd, hp.n_ff(il))

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """A dense network beside experts, which is read and not computed with."""
        yield from super().passed_over(tensors)
        for il in (il for il, routed in enumerate(self._routed) if routed):
            yield from (f"blk.{il}.ffn_{name}.weight" for name in ("gate", "up", "down"))
