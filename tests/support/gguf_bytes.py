"""A writer of GGUF bytes that can lie: every number is the caller's."""

import struct

from pyggml.gguf import ValueType
from pyggml.gguf.header import parse


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, ValueType.U32, struct.pack("<I", value))


def array(kind: int, n: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, n) + values


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    head = string(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims)
    return head + b"".join(struct.pack("<q", d) for d in dims) + struct.pack("<IQ", kind, offset)


def build(
    pairs: list[bytes] = (),
    tensors: list[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = struct.pack("<QQ", len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_kv is None else n_kv)
    head = magic + struct.pack("<I", version) + counts + b"".join(pairs) + b"".join(tensors)
    return head + (bytes(-len(head) % alignment) + data if tensors else b"")


def read(raw: bytes):
    return parse(memoryview(raw))
