"""LoRA adapters: beside a weight W two small matrices A and B, so that W x becomes W x + scale B A x.

Owns what an adapter's file must hold (names, shapes, scale) and the nodes that it adds; knows no model and no device.
Follows llama.cpp: llama-adapter.cpp (llama_adapter_lora_init_impl), llama-graph.cpp (build_lora_mm, build_lora_mm_id,
build_inp_embd).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from pyggml import ops
from pyggml.errors import ContextError, ModelError
from pyggml.gguf import GGUFFile, TensorInfo, ValueType
from pyggml.model.module import Weight
from pyggml.tensor import Tensor

EMBEDDINGS = "token_embd.weight"
INVOCATION = "adapter.alora.invocation_tokens"


class Pair(NamedTuple):
    """a (n_in, rank) and b (rank, n_out), of experts one more dimension, their number; of token embeddings a
    (rank, n_tokens), a row for each token, and b (rank, n_embd)."""

    a: Tensor
    b: Tensor


class Adapter:
    """What one file holds; `Model.load_adapter` makes it, and places its tensors.

    path, alpha  alpha 0: the products count as they are, whatever the rank
    pairs        by the name of the weight
    digest       32 bytes that tell files apart
    """

    def __init__(self, path: str, alpha: float, pairs: dict[str, Pair], digest: bytes) -> None:
        self.path, self.alpha, self.pairs, self.digest = path, alpha, pairs, digest

    @classmethod
    def read(cls, file: GGUFFile, architecture: str, weights: Mapping[str, Weight]) -> Self:
        """From an open file, for a model with these weights, by name; no tensor has a place yet. Raises ModelError,
        GGUFError."""
        for key, wanted in (
            ("general.type", "adapter"),
            ("adapter.type", "lora"),
            ("general.architecture", architecture),
        ):
            if file.text(key) != wanted:
                what = f"is {file.metadata[key]!r:.60}" if key in file.metadata else "is missing"
                whose = " as in the model" if key == "general.architecture" else ""
                raise ModelError(f"not an adapter for this model: {key} {what}, must be {wanted!r}{whose}")
        alpha = file.get_f32("adapter.lora.alpha", 0.0)
        if not math.isfinite(alpha):
            raise ModelError(f"adapter.lora.alpha is {alpha}, must be a finite number")
        if INVOCATION in file.metadata and file.get_array(INVOCATION).dtype != np.uint32:
            raise ModelError(f"{INVOCATION} must be an array of {ValueType.U32.name}")
        pairs = {name: _pair(name, weights.get(name), a, b) for name, a, b in _named_pairs(file)}
        return cls(str(file.paths[0]), alpha, pairs, file.fingerprint())

    def own(self, il: int) -> list[Tensor]:
        """What it adds to the result of a layer."""
        return []

    def steer(self, il: int, x: Tensor) -> Tensor:
        """x (n_embd, n_tokens), the result of layer `il` -> what the next one reads; a LoRA adapter leaves it."""
        return x

    def tensors(self) -> Iterator[Tensor]:
        """A and B of each pair."""
        for pair in self.pairs.values():
            yield from pair

    @property
    def placed(self) -> bool:
        return all(tensor.buffer is not None for tensor in self.tensors())


class Applied(NamedTuple):
    """An adapter in use, and how much of it: what GraphBuilder asks for the nodes."""

    adapter: Adapter
    scale: float

    @classmethod
    def of(cls, adapters: Sequence[tuple[Adapter, float]], there: Container[Adapter]) -> tuple[Applied, ...]:
        """Those that make a difference; `there`: the model's. Raises ContextError."""
        for adapter, scale in adapters:
            if adapter not in there:
                raise ContextError(f"{adapter.path}: not an adapter of this model, or freed")
            if not math.isfinite(scale):
                raise ContextError(f"{adapter.path}: a scale of {scale}, must be a finite number")
        different = {id(adapter) for adapter, _ in adapters}
        if len(different) < len(adapters):
            raise ContextError(
                f"{len(adapters)} adapters, of which {len(different)} are different: give each one scale"
            )
        return tuple(cls(adapter, float(scale)) for adapter, scale in adapters if scale)

    def factor(self, pair: Pair) -> float:
        """scale x alpha / rank in float32 (llama-adapter.h: get_scale)."""
        scale, alpha = np.float32(self.scale), np.float32(self.adapter.alpha)
        with np.errstate(over="ignore"):  # infinite then, as there
            return float(scale * alpha / np.float32(pair.b.ne[0]) if alpha else scale)

    def add(self, weight: Weight, x: Tensor, y: Tensor) -> Tensor:
        """x (n_in, n_tokens), y = W x (n_out, n_tokens) -> y and the pair's product. A matrix of logits that is the token
        embeddings too is used as it is."""
        pair = self.adapter.pairs.get(weight.name)
        if pair is None or weight.name == EMBEDDINGS:
            return y
        return self._sum(pair, y, ops.mul_mat(pair.b, ops.mul_mat(pair.a, x)))

    def add_id(self, weight: Weight, x: Tensor, ids: Tensor, y: Tensor) -> Tensor:
        """The same for the experts `ids` (n_used, n_tokens): x (n_in, 1 or n_used, n_tokens), y (n_out, n_used,
        n_tokens)."""
        pair = self.adapter.pairs.get(weight.name)
        if pair is None:
            return y
        return self._sum(pair, y, ops.mul_mat_id(pair.b, ops.mul_mat_id(pair.a, x, ids), ids))

    def add_rows(self, weight: Weight, tokens: Tensor, y: Tensor) -> Tensor:
        """The same for the embeddings y (n_embd, n_tokens) of `tokens`."""
        pair = self.adapter.pairs.get(weight.name)
        if pair is None:
            return y
        return self._sum(pair, y, ops.mul_mat(pair.b, ops.get_rows(pair.a, tokens)))

    def _sum(self, pair: Pair, y: Tensor, product: Tensor) -> Tensor:
        return ops.add(y, ops.scale(product, self.factor(pair)))


def _named_pairs(file: GGUFFile) -> Iterator[tuple[str, TensorInfo, TensorInfo]]:
    """(name of the weight, A, B), in the order of the names. Raises ModelError."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    for name, info in file.tensors.items():
        weight, dot, half = name.rpartition(".")
        if dot and half in ("lora_a", "lora_b"):
            halves.setdefault(weight, {})[half] = info
        elif not name.endswith("_norm.weight"):  # those of some conversions, which llama.cpp passes over too
            raise ModelError(f"tensor {name!r:.80} is no part of an adapter: names end in .lora_a or .lora_b")
    if not halves:
        raise ModelError("no tensor in it is a part of an adapter: names end in .lora_a or .lora_b")
    for weight, found in sorted(halves.items()):
        for half in ("lora_a", "lora_b"):
            if half not in found:
                raise ModelError(f"tensor {f'{weight}.{half}'!r:.80} is missing, its other half is there")
        yield weight, found["lora_a"], found["lora_b"]


def _pair(name: str, weight: Weight | None, a: TensorInfo, b: TensorInfo) -> Pair:
    """Raises ModelError when the model has no such weight, or one of another shape."""
    if weight is None or weight.tensor is None:
        raise ModelError(f"the model has no tensor {name!r:.80}: the adapter belongs to another one")
    ne = weight.tensor.ne
    if name == EMBEDDINGS:
        rank = a.ne[0]
        want_a, want_b = (rank, ne[1], *ne[2:]), (rank, ne[0], *ne[2:])
    else:
        rank = b.ne[0]
        want_a, want_b = (ne[0], rank, *ne[2:]), (rank, ne[1], *ne[2:])
    if rank < 1 or a.ne != want_a or b.ne != want_b:
        raise ModelError(
            f"tensors {name}.lora_a and .lora_b are {list(a.ne)} and {list(b.ne)}; beside a weight of {list(ne)} they must "
            f"be {list(want_a)} and {list(want_b)} at rank {rank}"
        )
    return Pair(Tensor(a.type, a.ne, name=a.name), Tensor(b.type, b.ne, name=b.name))
