"""A GGUF file written again with tensors left out or others in their place, and other metadata."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.gguf import GGUFFile
from pyggml.gguf.header import ValueType
from pyggml.gguf.write import Pair, Planned, head, padding
from pyggml.quants import quantize_row

ALIGNMENT = 32
TYPES = {
    np.ndarray: ValueType.ARRAY,
    bool: ValueType.BOOL,
    int: ValueType.U32,
    float: ValueType.F32,
    str: ValueType.STRING,
}


def edit(
    source: Path,
    target: Path,
    *,
    leave_out: Callable[[str], bool] = lambda name: False,
    replace: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, Any] | None = None,
    types: Callable[[str], GGMLType] = lambda name: GGMLType.F32,
) -> Path:
    """`leave_out(name)`: of tensors and keys; `replace`: F32 or I32 tensors, new ones too, shapes outermost first; `metadata`: in
    place of values that the file has, of the same type, or arrays; others are added; `types(name)`: what F32 tensors become."""
    replace, metadata = replace or {}, metadata or {}
    with GGUFFile.open(source) as file:
        pairs = [
            Pair(key, _kind(file.value_types[key], metadata.get(key)), metadata.get(key, value))
            for key, value in file.metadata.items()
            if not leave_out(key)
        ]
        pairs += [Pair(key, TYPES[type(v)], v) for key, v in metadata.items() if key not in file.metadata]
        data = {name: (t.type, t.ne, t.data.tobytes()) for name, t in file.tensors.items() if not leave_out(name)}
        for name, array in replace.items():
            ne = (*array.shape[::-1], 1, 1, 1)[:4]
            new, dtype = (GGMLType.I32, np.int32) if array.dtype == np.int32 else (GGMLType.F32, np.float32)
            data[name] = (new, ne, np.ascontiguousarray(array, dtype).tobytes())
        for name, (old, ne, raw) in data.items():
            if old == GGMLType.F32 and (new := types(name)) != old:
                data[name] = new, ne, quantize_row(new, np.frombuffer(raw, np.float32).reshape(-1, ne[0])).tobytes()
        with target.open("wb") as out:
            out.write(head(pairs, [Planned(name, dtype, ne) for name, (dtype, ne, _) in data.items()], ALIGNMENT))
            for _, _, raw in data.values():
                out.write(raw + bytes(padding(len(raw), ALIGNMENT)))
    return target


def _kind(there: ValueType, new: Any) -> ValueType:
    return ValueType.ARRAY if isinstance(new, np.ndarray) else there
