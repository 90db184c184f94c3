"""Version 1 of saved states: of a model whose layers all keep keys and values of all tokens, in rows of one size.

A state is HEADER; the tokens, i32 each; then for each layer the rows of K and the rows of V, one row a token, in the cache's
types, V never transposed. Owns this layout, which stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType
from pyggml.errors import StateError
from pyggml.memory.kv import KVCache
from pyggml.runtime.state_base import DIGEST, MAGIC, SavedState, check_digest

if TYPE_CHECKING:
    from pyggml.runtime.context import Context

VERSION = 1
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("n_tokens", "<u4"),
        ("n_layer", "<u4"),
        ("type_k", "<u4"),
        ("type_v", "<u4"),
        ("row_k", "<u4"),  # bytes of K for one token in one layer
        ("row_v", "<u4"),
        ("n_adapters", "<u4"),  # in use when the rows were computed
        ("fingerprint", "u1", (32,)),
    ]
)
assert HEADER.itemsize == 72


def is_plain(context: Context) -> bool:
    """Whether states of this context are of this version."""
    (part, *others) = context.memory.parts
    if others or not isinstance(part, KVCache) or part.window is not None:
        return False
    rows = {(k.nb[1], -1 if v is None else v.nb[1]) for k, v in zip(part.k, part.v, strict=True)}
    return len(rows) == 1 and None not in part.v


def type_name(number: int) -> str:
    """The name of a type, or its number where it has none here."""
    return {int(t): t.name for t in GGMLType}.get(number, f"of type number {number}")


class PlainState(SavedState):
    """`rows`: all bytes behind the tokens."""

    def __init__(self, name: str, head: Any, tokens: NDArray[np.int32], rows: NDArray[np.uint8]) -> None:
        super().__init__(name, head, tokens)
        self._rows = rows

    @classmethod
    def read(cls, raw: NDArray[np.uint8], name: str) -> Self:
        """Raises StateError."""
        if raw.size < HEADER.itemsize:
            raise StateError(f"{name}: not a saved state")
        header = raw[: HEADER.itemsize].view(HEADER)[0]
        n = int(header["n_tokens"])
        row = int(header["row_k"]) + int(header["row_v"])
        size = HEADER.itemsize + n * (4 + int(header["n_layer"]) * row) + DIGEST
        if raw.size != size:
            raise StateError(f"{name}: damaged: {raw.size} bytes, its header announces {size}")
        check_digest(raw, name)
        at = HEADER.itemsize + 4 * n
        tokens = raw[HEADER.itemsize : at].view("<i4").astype(np.int32)
        return cls(name, header, tokens, raw[at:-DIGEST])

    def check_memory(self, context: Context) -> None:
        if not is_plain(context):
            raise StateError(f"{self.name}: damaged: of version {VERSION}, which is none of such a model's")
        expected = _header(context, 0, b"", 0)
        for which in ("k", "v"):
            there, here = (int(h[f"type_{which}"]) for h in (self.head, expected))
            if there != here:
                raise StateError(
                    f"{self.name}: its {which.upper()} is {type_name(there)}, the context's is {type_name(here)}"
                )
        for field in ("n_layer", "row_k", "row_v"):
            if self.head[field] != expected[field]:
                raise StateError(f"{self.name}: damaged: its {field} is {self.head[field]}, not {expected[field]}")

    def fill(self, context: Context, n: int, seq: int) -> int:
        at, rows, total = 0, [], len(self.tokens)
        cache = context.cache
        for _ in cache.k:
            for field in ("row_k", "row_v"):
                row = int(self.head[field])
                rows.append(self._rows[at : at + n * row])
                at += total * row
        cache.fill(seq, np.arange(n, dtype=np.int32), rows)
        return n


def pieces(context: Context, tokens: Sequence[int], seq: int, fingerprint: bytes, n_adapters: int) -> Iterator[bytes]:
    """A state but for its digest."""
    yield _header(context, len(tokens), fingerprint, n_adapters).tobytes()
    yield np.asarray(tokens, "<i4").tobytes()
    yield from context.cache.rows_of(seq, context.cache.cells.of(seq))


def _header(context: Context, n: int, fingerprint: bytes, n_adapters: int) -> Any:
    cache = context.cache
    k, v = cache.k[0], cache.v[0]
    assert v is not None, "a plain cache has values"
    header = np.zeros(1, HEADER)
    header["magic"], header["version"], header["n_tokens"], header["n_layer"] = MAGIC, VERSION, n, len(cache.k)
    header["type_k"], header["type_v"] = k.type, v.type
    header["row_k"], header["row_v"] = k.nb[1], v.nb[1]
    header["fingerprint"] = np.frombuffer(fingerprint.ljust(32, b"\0"), np.uint8)
    header["n_adapters"] = n_adapters
    return header[0]
