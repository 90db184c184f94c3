"""The head of one GGUF file: bytes in, metadata and tensor places out, every number checked before it is believed.

Owns the format (versions 2 and 3, little-endian; ggml's docs/gguf.md and gguf.cpp); opens no file and knows no model.
Every failure is a GGUFError of one line with the key or tensor, the numbers and the byte offset; the caller adds the
file's name. Nothing is allocated in proportion to a count that the remaining bytes could not hold.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.errors import GGUFError
from pyggml.gguf.strings import LENGTH_SIZE, StringArray, locate

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME = 63  # GGML_MAX_NAME less its final NUL
MAX_DEPTH = 8  # arrays in arrays
MIN_PAIR = 8 + 1 + 4 + 1  # key length, a character, value type, a byte
MIN_TENSOR = 8 + 4 + 4 + 8  # name length, n_dims, type, offset


class ValueType(IntEnum):
    """Types of metadata values (enum gguf_type)."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


NUMBERS: dict[ValueType, np.dtype[Any]] = {
    ValueType.U8: np.dtype("u1"),
    ValueType.I8: np.dtype("i1"),
    ValueType.U16: np.dtype("<u2"),
    ValueType.I16: np.dtype("<i2"),
    ValueType.U32: np.dtype("<u4"),
    ValueType.I32: np.dtype("<i4"),
    ValueType.F32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.U64: np.dtype("<u8"),
    ValueType.I64: np.dtype("<i8"),
    ValueType.F64: np.dtype("<f8"),
}
assert set(NUMBERS) | {ValueType.STRING, ValueType.ARRAY} == set(ValueType)
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in zip(NUMBERS, "BbHhIif?Qqd", strict=True)}
_VALUE_TYPES = {kind.value: kind for kind in ValueType}
_TENSOR_TYPES = {kind.value: kind for kind in GGMLType}


class TensorPlace(NamedTuple):
    """One tensor as the head tells it; `offset` counts from the start of the file."""

    name: str
    type: GGMLType
    ne: tuple[int, int, int, int]
    nbytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data: `alignment` in bytes; `metadata` by key, with the type of each value in
    `value_types`."""

    version: int
    alignment: int
    metadata: dict[str, Any]
    value_types: dict[str, ValueType]
    tensors: list[TensorPlace]


_CODES = {code: struct.Struct("<" + code) for code in "IQq"}


class _Cursor:
    """A place in the bytes that moves forward and never past the end."""

    __slots__ = ("data", "pos", "size")

    def __init__(self, data: memoryview) -> None:
        self.data, self.size = data, len(data)
        self.pos = 0

    @property
    def left(self) -> int:
        return self.size - self.pos

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            raise GGUFError(f"{what} needs {size} bytes at offset {self.pos}, the file ends {self.left} bytes later")
        self.pos += size
        return self.data[self.pos - size : self.pos]

    def number(self, code: str, what: str) -> Any:
        form, at = _CODES[code], self.pos
        if at + form.size > self.size:
            self.take(form.size, what)
        self.pos = at + form.size
        return form.unpack_from(self.data, at)[0]

    def string(self, what: str) -> str:
        at = self.pos
        size = self.number("Q", f"length of {what}")
        begin, end = self.pos, self.pos + size
        if end > self.size:
            raise GGUFError(f"{what} at offset {at} has length {size}, but only {self.left} bytes follow")
        self.pos = end
        try:
            return str(self.data[begin:end], "utf-8")
        except UnicodeDecodeError as e:
            raise GGUFError(
                f"{what} is not UTF-8: byte 0x{self.data[begin + e.start]:02x} at offset {begin + e.start}"
            ) from None


def parse(data: memoryview) -> Header:
    """Reads and checks everything before the tensors' bytes. `data` is the whole file."""
    cur = _Cursor(data)
    magic = bytes(cur.take(4, "the magic"))
    if magic != MAGIC:
        raise GGUFError(f"not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    version = cur.number("I", "the version")
    if version and version & 0xFFFF == 0:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise GGUFError(f"a big-endian file (version {swapped}): only little-endian files are supported")
    if version not in VERSIONS:
        raise GGUFError(f"GGUF version {version} is not supported (supported: 2, 3)")
    n_tensors = _count(cur, "tensors", MIN_TENSOR)
    n_kv = _count(cur, "metadata pairs", MIN_PAIR)
    metadata: dict[str, Any] = {}
    value_types: dict[str, ValueType] = {}
    for i in range(n_kv):
        at = cur.pos
        key = cur.string(f"key {i} of {n_kv}")
        if not key:
            raise GGUFError(f"key {i} of {n_kv} at offset {at} is empty")
        if key in metadata:
            raise GGUFError(f"key {key!r} at offset {at} is there twice")
        value_types[key] = _value_type(cur, key)
        metadata[key] = _value(cur, key, value_types[key])
    alignment = _alignment(metadata, value_types)
    tensors = _tensors(cur, n_tensors, alignment)
    return Header(version, alignment, metadata, value_types, tensors)


def _count(cur: _Cursor, what: str, smallest: int) -> int:
    at = cur.pos
    n: int = cur.number("Q", f"the number of {what}")
    if n * smallest > cur.left:
        raise GGUFError(f"{n} {what} (offset {at}) cannot fit: {cur.left} bytes follow, each takes at least {smallest}")
    return n


def _value_type(cur: _Cursor, key: str) -> ValueType:
    at = cur.pos
    number = cur.number("I", f"type of {key!r}")
    if (found := _VALUE_TYPES.get(number)) is None:
        known = ", ".join(f"{t.value} {t.name}" for t in ValueType)
        raise GGUFError(f"key {key!r} has value type {number} (offset {at}), known are {known}")
    return found


def _value(cur: _Cursor, key: str, kind: ValueType, depth: int = 0) -> Any:
    if kind is ValueType.STRING:
        return cur.string(f"value of {key!r}")
    if kind is ValueType.ARRAY:
        return _array(cur, key, depth)
    form = _SCALARS[kind]
    return form.unpack(cur.take(form.size, f"value of {key!r}"))[0]


def _array(cur: _Cursor, key: str, depth: int) -> Any:
    """A read-only NumPy array of numbers, a StringArray, or a list of arrays."""
    if depth >= MAX_DEPTH:
        raise GGUFError(f"key {key!r} nests arrays deeper than {MAX_DEPTH} (offset {cur.pos})")
    kind = _value_type(cur, key)
    at = cur.pos
    n = cur.number("Q", f"length of array {key!r}")
    smallest = LENGTH_SIZE if kind is ValueType.STRING else 12 if kind is ValueType.ARRAY else NUMBERS[kind].itemsize
    if n * smallest > cur.left:
        raise GGUFError(
            f"array {key!r} has {n} {kind.name} values (offset {at}), but only {cur.left} bytes follow, "
            f"each takes at least {smallest}"
        )
    if kind is ValueType.STRING:
        return _strings(cur, key, n)
    if kind is ValueType.ARRAY:
        return [_array(cur, key, depth + 1) for _ in range(n)]
    numbers = np.frombuffer(bytes(cur.take(n * smallest, f"array {key!r}")), NUMBERS[kind])
    if kind is ValueType.BOOL:
        numbers = numbers != 0
        numbers.flags.writeable = False
    return numbers


def _strings(cur: _Cursor, key: str, n: int) -> StringArray:
    base = cur.pos
    starts, ends, cur.pos = locate(cur.data, base, n)
    if len(starts) < n:
        i = len(starts)
        size = cur.number("Q", f"length of {key}[{i}]")
        raise GGUFError(f"{key}[{i}] at offset {cur.pos - 8} has length {size}, but only {cur.left} bytes follow")
    return StringArray(key, bytes(cur.data[base : cur.pos]), base, starts - base, ends - base)


def _alignment(metadata: dict[str, Any], value_types: dict[str, ValueType]) -> int:
    kind = value_types.get("general.alignment")
    if kind is None:
        return DEFAULT_ALIGNMENT
    if kind is not ValueType.U32:
        raise GGUFError(f"key 'general.alignment' must be U32, it is {kind.name}")
    alignment: int = metadata["general.alignment"]
    if alignment == 0 or alignment & (alignment - 1):
        raise GGUFError(f"general.alignment is {alignment}, must be a power of two")
    return alignment


def _tensors(cur: _Cursor, n_tensors: int, alignment: int) -> list[TensorPlace]:
    relative = [_tensor(cur, f"tensor {i} of {n_tensors}") for i in range(n_tensors)]
    size = len(cur.data)
    data_start = -(-cur.pos // alignment) * alignment
    names: set[str] = set()
    tensors = []
    for t in relative:
        if t.name in names:
            raise GGUFError(f"tensor {t.name!r} is there twice")
        names.add(t.name)
        if t.offset % alignment:
            raise GGUFError(f"tensor {t.name!r}: offset {t.offset} is not a multiple of the alignment {alignment}")
        offset = data_start + t.offset
        if offset + t.nbytes > size:
            raise GGUFError(
                f"tensor {t.name!r}: bytes {offset} to {offset + t.nbytes} reach past the end of the file ({size} bytes)"
            )
        tensors.append(t._replace(offset=offset))
    _check_overlaps(tensors)
    return tensors


def _tensor(cur: _Cursor, what: str) -> TensorPlace:
    """One record; its `offset` still counts from the start of the data section."""
    name = cur.string(f"name of {what}")
    if len(name.encode()) > MAX_NAME:
        raise GGUFError(f"name of {what} has {len(name.encode())} bytes, at most {MAX_NAME} are allowed: {name!r}")
    what = f"tensor {name!r}"
    n_dims = cur.number("I", f"{what}: n_dims")
    if n_dims > MAX_DIMS:
        raise GGUFError(f"{what} has {n_dims} dimensions (offset {cur.pos - 4}), at most {MAX_DIMS} are allowed")
    shape = [cur.number("q", f"{what}: dimension {i}") for i in range(n_dims)]
    elements = 1
    for n in shape:
        elements *= n
        if n < 0 or elements >= 1 << 63:
            raise GGUFError(f"{what} has impossible dimensions {shape}: below 0, or 2^63 elements and more")
    number = cur.number("I", f"{what}: type")
    if (kind := _TENSOR_TYPES.get(number)) is None:
        known = ", ".join(f"{t.name} ({t.value})" for t in GGMLType)
        raise GGUFError(f"{what} has unknown type {number}; supported are {known}")
    ne0, ne1, ne2, ne3 = (*shape, 1, 1, 1, 1)[:MAX_DIMS]
    if ne0 % SIZES[kind].block_size:
        raise GGUFError(
            f"{what}: row length {ne0} is not a multiple of the block size {SIZES[kind].block_size} of {kind.name}"
        )
    offset = cur.number("Q", f"{what}: offset")
    return TensorPlace(name, kind, (ne0, ne1, ne2, ne3), row_size(kind, ne0) * ne1 * ne2 * ne3, offset)


def _check_overlaps(tensors: list[TensorPlace]) -> None:
    placed = sorted((t for t in tensors if t.nbytes), key=lambda t: t.offset)
    for a, b in pairwise(placed):
        if a.offset + a.nbytes > b.offset:
            raise GGUFError(
                f"tensors {a.name!r} (bytes {a.offset} to {a.offset + a.nbytes}) and {b.name!r} "
                f"(from byte {b.offset}) overlap"
            )
