"""The file in which llama-perplexity keeps a model's predictions of a text, to compare another model's with.

Owns its layout: "_logits_", n_ctx, n_vocab, n_chunk (i32), the chunks' tokens (i32), then for each scored token its
probabilities in 16 bits (perplexity.cpp: log_softmax).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pyggml.atomic_file import atomic_file
from pyggml.errors import PyggmlError
from pyggml.perplexity.losses import MIN_CONTEXT, Ids, Rows, log_sums
from pyggml.regular_file import open_regular

MAGIC = b"_logits_"
HEAD = np.dtype([("magic", "S8"), ("n_ctx", "<i4"), ("n_vocab", "<i4"), ("n_chunk", "<i4")])
assert HEAD.itemsize == 20
RANGE = np.float32(16)  # logits further below the largest one are taken for 0


class BaseFileError(PyggmlError):
    """A file of predictions that is damaged, is none, or belongs to another vocabulary."""


def layout(n_vocab: int) -> np.dtype[Any]:
    """ln p = scale * q + least; an even number of q is stored."""
    record = np.dtype([("scale", "<f4"), ("least", "<f4"), ("q", "<u2", ((n_vocab + 1) // 2 * 2,))])
    assert record.itemsize == 2 * (2 * ((n_vocab + 1) // 2) + 4)
    return record


def pack_rows(logits: Rows) -> NDArray[Any]:
    """(n, n_vocab) -> records (n,)."""
    records = np.zeros(len(logits), layout(logits.shape[1]))
    most, log_sum = log_sums(logits)
    log_sum32 = log_sum.astype(np.float32)
    least = np.maximum(logits.min(axis=1), most - RANGE)
    records["least"] = least - most - log_sum32
    scale = (most - least) / np.float32(65535)
    records["scale"] = scale
    flat = scale == 0
    inverse = np.float32(1) / np.where(flat, np.float32(1), scale)
    q = np.rint(inverse[:, None] * (logits - least[:, None]))
    above = (logits > least[:, None]) & ~flat[:, None]
    records["q"][:, : logits.shape[1]] = np.where(above, q, np.float32(0)).astype(np.uint16)
    return records


def unpack_rows(records: NDArray[Any], n_vocab: int) -> Rows:
    """Records (n,) -> ln p (n, n_vocab)."""
    values: Rows = records["scale"][:, None] * records["q"][:, :n_vocab].astype(np.float32) + records["least"][:, None]
    return values


class BaseWriter:
    """Writes such a file; use `BaseWriter.open`."""

    def __init__(self, file: IO[bytes], n_vocab: int) -> None:
        self._file = file
        self._n_vocab = n_vocab

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, n_ctx: int, n_vocab: int, n_chunk: int, tokens: Ids) -> "Iterator[BaseWriter]":
        """The file is there when the block has ended without an error. Raises OSError."""
        with atomic_file(path, "file of predictions", lambda head: head.startswith(MAGIC)) as (file, finish):
            file.write(np.array([(MAGIC, n_ctx, n_vocab, n_chunk)], HEAD).tobytes())
            file.write(np.asarray(tokens[: n_chunk * n_ctx], "<i4").tobytes())
            yield cls(file, n_vocab)
            finish()

    def add(self, logits: Rows) -> None:
        """The next rows."""
        self._file.write(pack_rows(logits).tobytes())


class BaseFile:
    """Such a file, open: `n_ctx`, `n_vocab`, `n_chunk`, `tokens`. Use it in a `with` statement."""

    def __init__(self, path: Path) -> None:
        """Raises BaseFileError, OSError."""
        self._path = path
        self._file = open_regular(path)  # closed by __exit__
        try:
            self._read_head()
        except BaseException:
            self._file.close()
            raise

    def _read_head(self) -> None:
        head = np.frombuffer(self._take(HEAD.itemsize, "its head"), HEAD)[0]
        if head["magic"] != MAGIC:
            raise BaseFileError(f"{self._path}: not a file of predictions: it begins with {bytes(head['magic'])!r}")
        self.n_ctx, self.n_vocab, self.n_chunk = (int(head[name]) for name in ("n_ctx", "n_vocab", "n_chunk"))
        if self.n_ctx < MIN_CONTEXT or self.n_vocab < 1 or self.n_chunk < 0:
            numbers = f"n_ctx {self.n_ctx}, n_vocab {self.n_vocab}, n_chunk {self.n_chunk}"
            raise BaseFileError(f"{self._path}: impossible numbers: {numbers}")
        self._layout = layout(self.n_vocab)
        wanted = HEAD.itemsize + self.n_chunk * self.n_ctx * 4
        wanted += self.n_chunk * (self.n_ctx - 1 - self.n_ctx // 2) * self._layout.itemsize
        size = self._path.stat().st_size
        if size < wanted:
            raise BaseFileError(f"{self._path}: has {size} bytes, {self.n_chunk} chunks of {self.n_ctx} need {wanted}")
        self.tokens: Ids = np.frombuffer(self._take(self.n_chunk * self.n_ctx * 4, "its tokens"), "<i4").astype(
            np.int32
        )
        bad = self.tokens[(self.tokens < 0) | (self.tokens >= self.n_vocab)]
        if bad.size:
            raise BaseFileError(f"{self._path}: token {bad[0]} is outside its vocabulary of {self.n_vocab}")

    def take(self, n: int) -> Rows:
        """The next `n` rows: ln p (n, n_vocab). Raises BaseFileError."""
        raw = self._take(n * self._layout.itemsize, "its predictions")
        return unpack_rows(np.frombuffer(raw, self._layout), self.n_vocab)

    def _take(self, size: int, what: str) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise BaseFileError(f"{self._path}: ends within {what}")
        return data

    def __enter__(self) -> "BaseFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
