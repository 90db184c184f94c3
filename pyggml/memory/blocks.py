"""Rows that stand for blocks of tokens: one row for every `ratio` of them, made when the last one is there
(llama-kv-cache-dsv4.cpp: dsv4_build_comp_plan).

Owns where rows lie, which of them a token sees, and of which tokens each is made. A sequence has a stretch of rows of its own,
in which the number of a block is its place. Knows no layer's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.backend.base import Buffer
from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ContextError, StateError, UnsupportedError
from pyggml.memory.base import Bytes, Placement
from pyggml.memory.ended import Ended
from pyggml.memory.kv_tensors import KVShape
from pyggml.memory.placed import Placed
from pyggml.memory.ubatch import NOBODY, Ubatch
from pyggml.tensor import Tensor

STEP = 64
"""Graphs see a multiple of this many rows."""


class BlockLayer(NamedTuple):
    """What a layer keeps of each block of `ratio` tokens: names of rows, and their numbers of elements."""

    il: int
    ratio: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class BlockPlacement(Placement):
    """The micro-batch, and what its graph depends on."""

    ub: Ubatch
    shape: KVShape


class Completed(NamedTuple):
    """The blocks that a micro-batch completes, as many for each of its sequences; what fills up is written to a row that nobody
    sees.

    rows   (n_seqs, n) i64: where they lie
    pos    (n_seqs, n) i32: the position of their first token, which is that of the row
    first  (n_seqs, n) i64: the number of that token among the sequence's in the micro-batch; below 0: it came before
    real   (n_seqs, n) bool
    """

    rows: NDArray[np.int64]
    pos: NDArray[np.int32]
    first: NDArray[np.int64]
    real: NDArray[np.bool_]


class Blocks(Placed, Ended):
    """Of layers with the same ratio; `n_ctx` tokens of each sequence."""

    def __init__(self, layers: Sequence[BlockLayer], n_ctx: int, dtype: GGMLType, n_seq_max: int = 1) -> None:
        """Nothing is allocated yet. Raises UnsupportedError."""
        self.layers = list(layers)
        self.ratio = layers[0].ratio
        self.n_seq_max = self.n_streams = n_seq_max
        self.n_rows = _padded(n_ctx // self.ratio) + 1  # the last one is nobody's
        block = SIZES[dtype].block_size
        for size in (size for layer in layers for size in layer.sizes.values()):
            if size % block:
                name = dtype.name.lower()
                raise UnsupportedError(f"K cache type {name} with block size {block} does not divide rows of {size}")
        self.rows = [
            {name: Tensor(dtype, (n, self.n_rows * n_seq_max), name=f"{name}_l{la.il}") for name, n in la.sizes.items()}
            for la in layers
        ]
        self.ends = [0] * n_seq_max
        self.buffers: list[Buffer] = []

    def tensors(self, i: int) -> list[Tensor]:
        return list(self.rows[i].values())

    # ---- nodes of layer number i

    def read(self, i: int, name: str, shape: KVShape) -> Tensor:
        """(elements, n_kv, 1, n_streams)"""
        rows = self.rows[i][name]
        nb3 = rows.nb[1] * self.n_rows
        ne = (rows.ne[0], shape.n_kv, 1, shape.n_streams)
        return ops.view(rows, ne, (rows.nb[1], nb3, nb3), shape.first * nb3)

    def write(self, i: int, name: str, x: Tensor, rows: Tensor) -> Tensor:
        """Store x (elements, n) in these rows, I64 (n)."""
        return ops.set_rows(self.rows[i][name], x, rows)

    # ---- micro-batches

    def n_completed(self, n_tokens: int) -> int:
        """How many blocks so many tokens of a sequence complete at most."""
        return -(-n_tokens // self.ratio)

    def completed(self, ub: Ubatch) -> Completed:
        """The blocks that end within this micro-batch, as many for each sequence as can."""
        each, ratio = ub.n // ub.n_seqs, self.ratio
        start = ub.pos.astype(np.int64).reshape(ub.n_seqs, each)[:, 0]
        number = start[:, None] // ratio + np.arange(self.n_completed(each))[None, :]
        real = (number + 1) * ratio <= start[:, None] + each
        real &= (ub.seq.reshape(ub.n_seqs, each)[:, 0] != NOBODY)[:, None]
        stream = self._first(ub) + np.arange(ub.n_seqs, dtype=np.int64)
        rows = stream[:, None] * self.n_rows + np.where(real, number, self.n_rows - 1)
        pos = np.where(real, number * ratio, 0)
        return Completed(rows, pos.astype(np.int32), np.where(real, pos - start[:, None], 0), real)

    def _first(self, ub: Ubatch) -> int:
        return ub.first if self.n_streams > 1 else 0

    def mask(self, placement: BlockPlacement, dtype: type[np.floating] = np.float32) -> NDArray[np.floating]:
        """0 where a token sees a row: its block is complete with it at the latest; else -inf. (n_tokens, n_kv)."""
        n_kv = placement.shape.n_kv
        seen = np.arange(n_kv)[None, :] < ((placement.ub.pos.astype(np.int64) + 1) // self.ratio)[:, None]
        return np.where(seen, dtype(0), dtype("-inf"))

    def place(self, ub: Ubatch) -> BlockPlacement | None:
        last = int(ub.pos.max()) + 1
        if last // self.ratio > self.n_rows - 1:
            return None
        return BlockPlacement(ub, self.shape_of(last, ub.n_seqs, self._first(ub)))

    def shape_of(self, n_tokens: int, n_seqs: int, first: int = 0) -> KVShape:
        """Of a micro-batch whose longest sequence has so many tokens then: all of their blocks, and one that is not complete."""
        return KVShape(min(_padded(n_tokens // self.ratio), self.n_rows - 1), first, n_seqs)

    def commit(self, placement: Placement) -> None:
        assert isinstance(placement, BlockPlacement)
        self.follow(placement.ub)

    def shape(self, placement: Placement) -> KVShape:
        assert isinstance(placement, BlockPlacement)
        return placement.shape

    # ---- sequences

    @property
    def why_no_shift(self) -> str:
        return f"blocks of {self.ratio} tokens were made one, which cannot be parted"

    def copy(self, src: int, dst: int, p0: int = 0, p1: int | None = None) -> None:
        if src == dst:
            return
        if why := self.why_not_copy(src, p0, p1):
            raise ContextError(why)
        self.load(dst, self.dump(src), None if p1 is None else min(p1, self.ends[src]))

    def why_not_copy(self, src: int, p0: int = 0, p1: int | None = None) -> str:
        return "" if not p0 else f"blocks of {self.ratio} tokens are copied from the first on, not from {p0}"

    # ---- bytes

    @property
    def row(self) -> int:
        """Bytes of a block in all layers."""
        return sum(rows.nb[1] for layer in self.rows for rows in layer.values())

    def pieces(self, seq: int) -> Iterator[bytes]:
        """The end (u32), and for each layer its rows."""
        yield np.array([self.ends[seq]], "<u4").tobytes()
        n = self.ends[seq] // self.ratio
        for rows in (rows for layer in self.rows for rows in layer.values() if n):
            assert rows.buffer is not None
            yield rows.buffer.get(rows, seq * self.n_rows * rows.nb[1], n * rows.nb[1])

    def dump_size(self, seq: int) -> int:
        return 4 + self.ends[seq] // self.ratio * self.row

    def loads(self, data: Bytes, end: int) -> bool:
        return self._saved_end(data) >= end

    def _saved_end(self, data: Bytes) -> int:
        end = int.from_bytes(bytes(data[:4]), "little") if len(data) >= 4 else -1
        if end < 0 or len(data) != 4 + end // self.ratio * self.row:
            raise StateError(f"{len(data)} bytes are none of blocks of {self.ratio} tokens, each of {self.row} bytes")
        return end

    def load(self, seq: int, data: Bytes, end: int | None = None) -> None:
        self.ends[seq] = 0
        there = self._saved_end(data)
        end = there if end is None else end
        if end > there or end // self.ratio > self.n_rows - 1:
            raise StateError(f"blocks of {there} tokens are none of {end} in a context of {self.n_rows - 1} blocks")
        n, kept, at = there // self.ratio, end // self.ratio, 4
        for rows in (rows for layer in self.rows for rows in layer.values() if kept):
            assert rows.buffer is not None
            size = rows.nb[1]
            rows.buffer.set(rows, np.frombuffer(bytes(data[at : at + kept * size]), np.uint8), seq * self.n_rows * size)
            at += n * size
        self.ends[seq] = end


def _padded(n: int) -> int:
    """Rows of so many blocks, and of one more."""
    return -(-(n + 1) // STEP) * STEP
