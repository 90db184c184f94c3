"""The head of a GGUF file from metadata and tensors: the inverse of `header.py`, version 3.

The `gguf` package's writer is not used: it guesses the element type of an array from Python values, cannot write an
empty array, and takes seconds for a vocabulary, whose bytes are at hand here.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyggml.dtypes import GGMLType, row_size
from pyggml.gguf.header import MAGIC, NUMBERS, ValueType
from pyggml.gguf.strings import StringArray

VERSION = 3


class Pair(NamedTuple):
    """One entry of the metadata; `value` as GGUFFile.metadata has it."""

    key: str
    type: ValueType
    value: Any


class Planned(NamedTuple):
    """A tensor to come."""

    name: str
    type: GGMLType
    ne: tuple[int, int, int, int]

    @property
    def nbytes(self) -> int:
        """Raises ShapeError when a row is no whole number of blocks."""
        return row_size(self.type, self.ne[0]) * self.ne[1] * self.ne[2] * self.ne[3]


def padding(size: int, alignment: int) -> int:
    """Zero bytes after so many."""
    return -size % alignment


def head(pairs: Sequence[Pair], tensors: Iterable[Planned], alignment: int) -> bytes:
    """Everything before the first tensor's bytes. Each tensor's bytes follow the last one's, padded to the alignment.

    Raises ShapeError.
    """
    places, offset, count = [], 0, 0
    for tensor in tensors:
        count += 1
        n_dims = max([1, *(i + 1 for i, n in enumerate(tensor.ne) if n != 1)])
        places += [_string(tensor.name), struct.pack(f"<I{n_dims}q", n_dims, *tensor.ne[:n_dims])]
        places.append(struct.pack("<IQ", tensor.type, offset))
        offset += tensor.nbytes + padding(tensor.nbytes, alignment)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, count, len(pairs))]
    for key, kind, value in pairs:
        parts += [_string(key), struct.pack("<I", kind), _value(kind, value)]
    data = b"".join([*parts, *places])
    return data + bytes(padding(len(data), alignment))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: ValueType, value: Any) -> bytes:
    if kind is ValueType.STRING:
        return _string(value)
    if kind is ValueType.ARRAY:
        return _array(value)
    return np.array(value, NUMBERS[kind]).tobytes()


def _array(value: Any) -> bytes:
    if isinstance(value, StringArray):
        return struct.pack("<IQ", ValueType.STRING, len(value)) + value.encoded
    if isinstance(value, list):
        return struct.pack("<IQ", ValueType.ARRAY, len(value)) + b"".join(map(_array, value))
    kind = ValueType.BOOL if value.dtype == bool else _KINDS[value.dtype]
    raw: bytes = value.tobytes()
    return struct.pack("<IQ", kind, len(value)) + raw


_KINDS = {dtype: kind for kind, dtype in NUMBERS.items() if kind is not ValueType.BOOL}
