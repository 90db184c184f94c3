"""Control vectors: to each layer's result a vector is added, which turns what the model says into a direction.

Owns what their files must hold, how several become one, and the node that it adds; knows no model and no device. Follows
llama.cpp: common.cpp (common_control_vector_load), llama-adapter.cpp (llama_adapter_cvec: tensor_for, apply_to, apply).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.gguf import GGUFFile
from pyggml.model.lora import Adapter
from pyggml.tensor import Tensor

F32 = NDArray[np.float32]
PREFIX = "direction."


class ControlVector(Adapter):
    """One for all files together; `Model.load_control_vectors` makes it, and places its tensors. A context uses it as an adapter,
    with a scale of 1.

    vectors  by layer, (n_embd,) each: what is added to the result of that layer
    layers   their tensors
    """

    def __init__(self, path: str, vectors: dict[int, F32]) -> None:
        digest = hashlib.sha256(b"control vector")
        for il, vector in vectors.items():
            digest.update(il.to_bytes(4, "little") + vector.tobytes())
        super().__init__(path, 0.0, {}, digest.digest())
        self.vectors = vectors
        self.layers = {il: Tensor(GGMLType.F32, v.shape, name=f"control_vector-{il}") for il, v in vectors.items()}

    @classmethod
    def read(  # type: ignore[override]  # of other files
        cls, given: Sequence[tuple[str | os.PathLike[str], float]], n_embd: int, n_layer: int, first: int, last: int
    ) -> Self:
        """The sum of files, each times a scale, in layers `first` to `last`; below 1: from the first or to the last that has
        one. Layer 0 has none. Raises ModelError, GGUFError, OSError."""
        total: dict[int, F32] = {}
        for path, scale in given:
            for il, vector in _sums(path, np.float32(scale), n_embd).items():
                total[il] = total[il] + vector if il in total else vector
        first, last = max(first, 1), last if last > 0 else n_layer
        chosen = {il: vector for il, vector in sorted(total.items()) if first <= il <= min(last, n_layer - 1)}
        return cls(", ".join(os.fspath(path) for path, _ in given), chosen)

    def tensors(self) -> Iterator[Tensor]:
        yield from self.layers.values()

    def own(self, il: int) -> list[Tensor]:
        return [self.layers[il]] if il in self.layers else []

    def steer(self, il: int, x: Tensor) -> Tensor:
        vector = self.layers.get(il)
        return x if vector is None else ops.add(x, vector, name=f"control-{il}")


def _sums(path: str | os.PathLike[str], scale: np.float32, n_embd: int) -> dict[int, F32]:
    """By layer what a file holds, times `scale`; a layer may have several. Raises ModelError, GGUFError, OSError."""
    found: dict[int, F32] = {}
    with GGUFFile.open(path) as file:
        if not file.tensors:
            raise ModelError(f"{os.fspath(path)}: no control vector: it holds no tensor {PREFIX}N")
        for name, info in file.tensors.items():
            il = _layer(name)
            if il is None:
                raise ModelError(
                    f"{os.fspath(path)}: tensor {name!r:.80} is no part of a control vector: names are {PREFIX}N, N from 1"
                )
            if info.type != GGMLType.F32 or info.ne != (n_embd, 1, 1, 1):
                raise ModelError(
                    f"{os.fspath(path)}: tensor {name!r:.80} is {info.type.name} {list(info.ne)}, must be F32 with the "
                    f"model's {n_embd} elements"
                )
            vector = np.frombuffer(info.data.tobytes(), np.float32)
            if not np.isfinite(vector).all():
                raise ModelError(f"{os.fspath(path)}: tensor {name!r:.80} holds numbers that are not finite")
            before = found.get(il, np.zeros(n_embd, np.float32))
            found[il] = before + vector * scale
    return found


def _layer(name: str) -> int | None:
    """The layer that a tensor is of, by what std::stoi makes of its name; None for one that is of none."""
    digits = name.removeprefix(PREFIX)
    end = next((i for i, c in enumerate(digits) if not ("0" <= c <= "9")), len(digits))
    if digits == name or not 0 < end <= 9 or int(digits[:end]) == 0:
        return None
    return int(digits[:end])
