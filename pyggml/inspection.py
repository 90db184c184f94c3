"""What is in a model file, as plain values that JSON can hold: metadata, tensors, sizes.

Owns the shape of that description.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pyggml.gguf import GGUFFile, StringArray, TensorInfo, ValueType
from pyggml.gguf.header import NUMBERS
from pyggml.quantize.mixes import MIXES, OTHERS
from pyggml.quantize.plan import GUESSED, file_type_number

SIZES = ("Small", "Medium", "Large")
_NAMES = {mix.number: mix.name for mix in MIXES.values()} | {number: name for name, number in OTHERS.items()}
_NAMES[39] = "NVFP4"  # conversions make it, llama-quantize does not
_KINDS = {dtype: kind for kind, dtype in NUMBERS.items() if kind is not ValueType.BOOL}


def describe(file: GGUFFile) -> dict[str, Any]:
    """All of a file but its weights.

    paths, version, alignment
    name, architecture, file_type      as the metadata say, file_type as llama.cpp's name; None where they do not
    n_tensors, n_parameters, n_bytes, bits_per_weight   of the tensors
    types      type -> {tensors, parameters, bytes, bits_per_weight}, the largest first
    metadata   key -> {type, value}, of an array also {items, length}; an f32 as its shortest decimal; NaN and
               infinities as text
    tensors    [{name, type, shape, parameters, bytes, path, offset}]; shape as in ggml, the row's length first
    chat_template
    adapter    of a LoRA adapter {type, alpha, ranks, weights}: the ranks that there are, and how many weights it is for;
               None for a model
    """
    tensors = list(file.tensors.values())
    return {
        "paths": [str(path) for path in file.paths],
        "version": file.version,
        "alignment": file.alignment,
        "name": file.text("general.name"),
        "architecture": file.text("general.architecture"),
        "file_type": file_type(file),
        "n_tensors": len(tensors),
        **_sizes(tensors, "n_parameters", "n_bytes"),
        "types": _types(tensors),
        "metadata": {key: entry(file.value_types[key], value) for key, value in file.metadata.items()},
        "tensors": [_tensor(tensor) for tensor in tensors],
        "chat_template": file.text("tokenizer.chat_template"),
        "adapter": _adapter(file) if file.text("general.type") == "adapter" else None,
    }


def _adapter(file: GGUFFile) -> dict[str, Any]:
    alpha = file.metadata.get("adapter.lora.alpha")
    halves = [tensor for name, tensor in file.tensors.items() if name.endswith(".lora_b")]
    return {
        "type": file.text("adapter.type"),
        "alpha": _plain(file.value_types["adapter.lora.alpha"], alpha) if isinstance(alpha, float) else None,
        "ranks": sorted({tensor.ne[0] for tensor in halves}),
        "weights": len(halves),
    }


def parameters(tensor: TensorInfo) -> int:
    """The number of elements."""
    return math.prod(tensor.ne)


def shape(tensor: TensorInfo) -> list[int]:
    """Without the ones at its end."""
    n_dims = max((i + 1 for i, n in enumerate(tensor.ne) if n != 1), default=1)
    return list(tensor.ne[:n_dims])


def file_type(file: GGUFFile) -> str | None:
    """llama.cpp's name of the mix, or its number where that has none here."""
    number = file.metadata.get("general.file_type")
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return _NAMES.get(number & ~GUESSED, str(number))


_LONG = {  # where llama_ftype_name in llama-model-loader.cpp says more than the mix's name
    "F32": "all F32",
    "MXFP4_MOE": "MXFP4 MoE",
    "Q2_K": "Q2_K - Medium",
    **{f"Q{n}_K_{letter}": f"Q{n}_K - {size}" for n in "2345" for letter, size in zip("SML", SIZES, strict=True)},
    "TQ1_0": "TQ1_0 - 1.69 bpw ternary",
    "TQ2_0": "TQ2_0 - 2.06 bpw ternary",
    "IQ1_S": "IQ1_S - 1.5625 bpw",
    "IQ1_M": "IQ1_M - 1.75 bpw",
    "IQ2_XXS": "IQ2_XXS - 2.0625 bpw",
    "IQ2_XS": "IQ2_XS - 2.3125 bpw",
    "IQ2_S": "IQ2_S - 2.5 bpw",
    "IQ2_M": "IQ2_M - 2.7 bpw",
    "IQ3_XXS": "IQ3_XXS - 3.0625 bpw",
    "IQ3_XS": "IQ3_XS - 3.3 bpw",
    "IQ3_S": "IQ3_S - 3.4375 bpw",
    "IQ3_M": "IQ3_S mix - 3.66 bpw",
    "IQ4_NL": "IQ4_NL - 4.5 bpw",
    "IQ4_XS": "IQ4_XS - 4.25 bpw",
}


def long_file_type(file: GGUFFile) -> str:
    """The words for the mix in llama.cpp's description of a model; "(guessed)" where the file does not say it."""
    number = file_type_number(file, (tensor.type for tensor in file.tensors.values()))
    known = _NAMES.get(number & ~GUESSED)
    return ("(guessed) " if number & GUESSED else "") + (_LONG.get(known, known) if known else "unknown, may not work")


def entry(kind: ValueType, value: Any) -> dict[str, Any]:
    """One value of the metadata."""
    if kind is ValueType.ARRAY:
        items = _items(value)
        return {"type": kind.name, "items": items.name, "length": len(value), "value": _array(items, value)}
    return {"type": kind.name, "value": _plain(kind, value)}


def _items(value: Any) -> ValueType:
    if isinstance(value, StringArray):
        return ValueType.STRING
    if isinstance(value, list):
        return ValueType.ARRAY
    return ValueType.BOOL if value.dtype == bool else _KINDS[value.dtype]


def _array(items: ValueType, value: Any) -> list[Any]:
    if isinstance(value, StringArray):
        return [value.raw(i).decode("utf-8", "replace") for i in range(len(value))]
    if isinstance(value, list):
        return [entry(ValueType.ARRAY, part) for part in value]
    return [_plain(items, x) for x in value.tolist()]


def _plain(kind: ValueType, value: Any) -> Any:
    if kind in (ValueType.F32, ValueType.F64):
        if not math.isfinite(value):
            return str(value)
        return float(str(np.float32(value))) if kind is ValueType.F32 else value
    return value


def _sizes(tensors: Iterable[TensorInfo], count: str, size: str) -> dict[str, Any]:
    n = n_bytes = 0
    for tensor in tensors:
        n += parameters(tensor)
        n_bytes += tensor.nbytes
    return {count: n, size: n_bytes, "bits_per_weight": n_bytes * 8 / n if n else None}


def _types(tensors: list[TensorInfo]) -> dict[str, dict[str, Any]]:
    by_type: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.type.name, []).append(tensor)
    found = {name: {"tensors": len(some), **_sizes(some, "parameters", "bytes")} for name, some in by_type.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": tensor.type.name,
        "shape": shape(tensor),
        "parameters": parameters(tensor),
        "bytes": tensor.nbytes,
        "path": str(Path(tensor.path)),
        "offset": tensor.offset,
    }
