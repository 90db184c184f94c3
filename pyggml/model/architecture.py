"""What a file of this folder has to offer so that its architecture can be run: hyper-parameters, weights, a graph.

Owns these types alone; knows no architecture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyggml.graph import Graph
from pyggml.model.config import Config
from pyggml.model.kv_cache import KVCache
from pyggml.ops import Op
from pyggml.tensor import Tensor

INPUT_LAYER = -1  # token embeddings; always on the local CPU


class Spec(NamedTuple):
    """A weight that a model has, or may have.

    `layer` is INPUT_LAYER, 0 to n_layer - 1, or n_layer for the output; there it is found under `key`. `op` is what
    reads it: a device that cannot compute that does not get it.
    """

    layer: int
    key: str
    name: str  # in the file
    ne: tuple[int, ...]
    op: Op
    required: bool = True


@dataclass
class Weights:
    """The weights, placed. `top` holds those of the input and output layers."""

    top: dict[str, Tensor] = field(default_factory=dict)
    layers: list[dict[str, Tensor]] = field(default_factory=list)


class Built(NamedTuple):
    """A graph and its ends. `logits` (n_vocab, n_outputs) F32 is None when no output was asked for.

    Inputs: tokens I32 (n_tokens), positions I32 (n_tokens), k_rows I64 (n_tokens), v_rows (the same tensor, or
    I64 (n_tokens x V elements) where V lies transposed), mask (n_kv, n_tokens), out_ids I32 (n_outputs) or None.
    """

    graph: Graph
    tokens: Tensor
    positions: Tensor
    k_rows: Tensor
    v_rows: Tensor
    mask: Tensor
    out_ids: Tensor | None
    logits: Tensor | None


class Architecture(ABC):
    """One value of general.architecture."""

    name: str

    @abstractmethod
    def config(self, metadata: Mapping[str, Any]) -> Config:
        """Raises ModelError naming the key."""

    @abstractmethod
    def specs(self, config: Config, tensors: Mapping[str, Any]) -> Iterator[Spec]:
        """All weights; `tensors` are the file's, by name, with `ne`. Raises ModelError."""

    def unread(self, config: Config, tensors: Mapping[str, Any]) -> Iterable[str]:
        """Names of tensors that a file may hold although no node reads them."""
        return ()

    @abstractmethod
    def build(
        self, config: Config, weights: Weights, cache: KVCache, n_tokens: int, n_kv: int, n_outputs: int
    ) -> Built:
        """The graph of one micro-batch that sees the first `n_kv` cells of the cache."""

    @abstractmethod
    def rotate(
        self, config: Config, weights: Weights, cache: KVCache, keys: Tensor, positions: Tensor, il: int
    ) -> Tensor:
        """Keys (head, n_head_kv, n) of a layer, as the cache holds them, turned by further positions."""
