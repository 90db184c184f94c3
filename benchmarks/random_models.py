"""GGUF files with random weights in the shape of a model: for speeds, where what is computed does not matter.

Owns the writer. A shape is the architecture's name and hyper-parameters; which tensors there are, the modules of the model say.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.gguf.header import ValueType
from pyggml.gguf.write import Pair, Planned, head, padding
from pyggml.model import make_modules
from pyggml.model.hparams import Hparams
from pyggml.quants import quantize_row
from pyggml.tensor import Tensor

ALIGNMENT = 32
ROWS = 32
"""Rows of random weights of each length and type; matrices repeat them."""

KINDS = {bool: ValueType.BOOL, int: ValueType.U32, float: ValueType.F32, str: ValueType.STRING}

TypeOf = Callable[[str, Sequence[int]], GGMLType]
"""The type of a tensor, from its name and ne."""


def metadata_of(shape: Mapping[str, Any]) -> dict[str, Any]:
    """The file's pairs. Keys of a shape stand without the architecture's name, all but general.architecture."""
    name = shape["general.architecture"]
    more = {"context_length": 32768, "attention.layer_norm_rms_epsilon": 1e-6}
    keys = {f"{name}.{key}": value for key, value in (more | dict(shape)).items() if key != "general.architecture"}
    return {"general.architecture": name, "tokenizer.ggml.model": "none", **keys}


def write(path: Path, shape: Mapping[str, Any], type_of: TypeOf) -> Path:
    """A file of this shape; written anew where it is missing. Vectors near 1, decays below 0, rows with a deviation of ne[0] ** -0.5."""
    if path.exists():
        return path
    metadata = metadata_of(shape)
    hp = Hparams(metadata, shape["general.architecture"])
    embedding = Tensor(GGMLType.F32, (shape["embedding_length"], shape["vocab_size"]), name="token_embd.weight")
    modules = make_modules(hp, {"token_embd.weight": embedding})
    wanted = [w for module in modules.modules() for w in module.own() if w.name]
    weights = {w.name: w for w in wanted if w.required or w.name.endswith("ffn_gate_exps.weight")}
    planned = [Planned(name, type_of(name, w.ne), (*w.ne, 1, 1, 1)[:4]) for name, w in weights.items()]
    rng, rows = np.random.default_rng(5), dict[tuple[GGMLType, int], np.ndarray]()
    pairs = [Pair(key, KINDS.get(type(value), ValueType.ARRAY), value) for key, value in metadata.items()]
    fresh = path.with_suffix(".part")
    with fresh.open("wb") as out:
        out.write(head(pairs, planned, ALIGNMENT))
        for tensor in planned:
            decay = tensor.name.endswith("ssm_a")
            if decay or tensor.ne[1] == 1:
                data = rng.uniform(0.5, 1.5, int(np.prod(tensor.ne))).astype(np.float32)
                out.write((-data if decay else data).tobytes())
            else:
                key = (tensor.type, tensor.ne[0])
                if key not in rows:
                    values = rng.normal(0, tensor.ne[0] ** -0.5, (ROWS, tensor.ne[0])).astype(np.float32)
                    rows[key] = np.stack(
                        [np.frombuffer(bytes(quantize_row(tensor.type, row)), np.uint8) for row in values]
                    )
                n = tensor.ne[1] * tensor.ne[2]
                block = np.concatenate([rows[key]] * 16)
                for i in range(0, n, len(block)):
                    out.write(block[: n - i].tobytes())
            out.write(bytes(padding(tensor.nbytes, ALIGNMENT)))
    fresh.rename(path)
    return path
