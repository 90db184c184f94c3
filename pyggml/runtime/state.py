"""The state of a context, kept in a file or in bytes: its tokens, and their keys and values.

Owns that format; must not know how a token is computed, nor when a state is worth keeping.

A state is HEADER; the tokens, i32 each; then for each layer the rows of K and the rows of V, one row a token, in the
cache's types, V never transposed; at last the BLAKE2b digest (32 bytes) of all before. The fingerprint is that of the
model file, of the hyper-parameters and of the adapters in use: keys and values of another model would be nonsense here.
"""

import errno
import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pyggml.atomic_file import atomic_file
from pyggml.dtypes import GGMLType
from pyggml.errors import StateError
from pyggml.regular_file import open_regular

if TYPE_CHECKING:
    from pyggml.model.lora import Applied
    from pyggml.model.model import Model
    from pyggml.runtime.context import Context

MAGIC, VERSION = b"PYGGMLKV", 1
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
DIGEST = 32
FOREIGN = {b"nsgg": "llama.cpp's session files are not read here", b"qsgg": "llama.cpp's states are not read here"}


def fingerprint(model: "Model", adapters: "Sequence[Applied]" = ()) -> bytes:
    """32 bytes that tell models apart: of the file, of the hyper-parameters, which may have been overridden, and of adapters
    and their scales, in whatever order."""
    digest = hashlib.sha256(model.file.fingerprint())
    digest.update(model.config.text().encode())
    for one in sorted(applied.adapter.digest + np.float32(applied.scale).tobytes() for applied in adapters):
        digest.update(one)
    return digest.digest()


@dataclass(frozen=True)
class State:
    """What was saved: `tokens` (n,) i32 and, behind `restore`, their keys and values."""

    tokens: NDArray[np.int32]
    name: str
    _header: Any
    _rows: NDArray[np.uint8]

    @classmethod
    def parse(cls, data: Any, name: str) -> Self:
        """From bytes that `parts` gave; `name` is what errors call them. Raises StateError."""
        raw = np.frombuffer(data, np.uint8)
        if raw.size < HEADER.itemsize or raw[:8].tobytes() != MAGIC:
            why = FOREIGN.get(raw[:4].tobytes())
            raise StateError(f"{name}: not a saved state" + (f": {why}" if why else ""))
        header = raw[: HEADER.itemsize].view(HEADER)[0]
        if header["version"] != VERSION:
            raise StateError(f"{name}: a state of version {header['version']}, version {VERSION} is known")
        n = int(header["n_tokens"])
        row = int(header["row_k"]) + int(header["row_v"])
        size = HEADER.itemsize + n * (4 + int(header["n_layer"]) * row) + DIGEST
        if raw.size != size:
            raise StateError(f"{name}: damaged: {raw.size} bytes, its header announces {size}")
        if hashlib.blake2b(raw[:-DIGEST].data, digest_size=DIGEST).digest() != raw[-DIGEST:].tobytes():
            raise StateError(f"{name}: damaged: its digest is another")
        at = HEADER.itemsize + 4 * n
        tokens = raw[HEADER.itemsize : at].view("<i4").astype(np.int32)
        return cls(tokens, name, header, raw[at:-DIGEST])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """From a file. Raises StateError, OSError."""
        name = os.fspath(path)
        try:
            file = open_regular(name)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise StateError(f"{name}: not a file") from None
            raise
        with file:
            if os.fstat(file.fileno()).st_size == 0:
                raise StateError(f"{name}: not a saved state: it is empty")
            return cls.parse(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), name)

    def check(self, context: "Context") -> None:
        """Raises StateError when the state is not one of such a context."""
        header, expected = self._header, _header(context, 0, context.adapters)
        there, here = int(header["n_adapters"]), int(expected["n_adapters"])
        if there != here:
            raise StateError(f"{self.name}: was computed with {there} adapters, {here} are in use")
        if bytes(header["fingerprint"]) != bytes(expected["fingerprint"]):
            raise StateError(
                f"{self.name}: belongs to another model" + (", or to other adapters or scales" if here else "")
            )
        for which in ("k", "v"):
            there, here = (int(h[f"type_{which}"]) for h in (header, expected))
            if there != here:
                name = {int(t): t.name for t in GGMLType}.get(there, f"of type number {there}")
                raise StateError(f"{self.name}: its {which.upper()} is {name}, the context's is {GGMLType(here).name}")
        for field in ("n_layer", "row_k", "row_v"):
            if header[field] != expected[field]:
                raise StateError(f"{self.name}: damaged: its {field} is {header[field]}, not {expected[field]}")
        bad = np.flatnonzero((self.tokens < 0) | (self.tokens >= context.model.n_vocab))
        if bad.size:
            raise StateError(
                f"{self.name}: damaged: token {self.tokens[bad[0]]} is outside the vocabulary of {context.model.n_vocab}"
            )

    def restore(self, context: "Context", n: int) -> None:
        """Let the first `n` tokens be those that `context` has decoded. Raises StateError and what devices raise."""
        assert 0 <= n <= min(len(self.tokens), context.n_ctx), (n, len(self.tokens), context.n_ctx)
        self.check(context)
        context.clear()
        context.computed_with = context.adapters
        at, rows = 0, []
        total, cache = len(self.tokens), context.cache
        for _ in cache.k:
            for field in ("row_k", "row_v"):
                row = int(self._header[field])
                rows.append(self._rows[at : at + n * row])
                at += total * row
        cache.fill(0, np.arange(n, dtype=np.int32), rows)


def parts(context: "Context", tokens: Sequence[int]) -> Iterator[bytes]:
    """The bytes of the state of `context`, which has decoded `tokens`, piece by piece. Raises StateError."""
    assert len(tokens) == context.n_past, (len(tokens), context.n_past)
    adapters = context.computed_with
    if adapters is None:
        raise StateError(
            f"{len(tokens)} tokens were not all computed with the same adapters: their state is no prompt's"
        )
    cache, n = context.cache, len(tokens)
    digest = hashlib.blake2b(digest_size=DIGEST)

    def pieces() -> Iterator[bytes]:
        yield _header(context, n, adapters).tobytes()
        yield np.asarray(tokens, "<i4").tobytes()
        yield from cache.rows_of(0, cache.cells.of(0))

    for piece in pieces():
        digest.update(piece)
        yield piece
    yield digest.digest()


def save(context: "Context", tokens: Sequence[int], path: str | os.PathLike[str]) -> None:
    """Write the state to a file, which is the old one or the whole new one, whatever happens. Raises StateError, OSError."""
    path = os.path.realpath(path)
    if os.path.lexists(path) and not os.path.isfile(path):
        raise StateError(f"{path}: not a file")
    with atomic_file(path, "saved state", lambda head: head.startswith(MAGIC)) as (file, finish):
        for part in parts(context, tokens):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        finish()


def _header(context: "Context", n: int, adapters: "Sequence[Applied]") -> Any:
    cache = context.cache
    header = np.zeros(1, HEADER)
    header["magic"], header["version"], header["n_tokens"], header["n_layer"] = MAGIC, VERSION, n, len(cache.k)
    v = cache.v[0]
    assert v is not None, "values are in keys"
    header["type_k"], header["type_v"] = cache.k[0].type, v.type
    header["row_k"], header["row_v"] = cache.k[0].nb[1], v.nb[1]
    header["fingerprint"] = np.frombuffer(fingerprint(context.model, adapters), np.uint8)
    header["n_adapters"] = len(adapters)
    return header[0]
