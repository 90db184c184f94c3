"""Which token lies in which cell: positions and sequences, as arrays. Knows no tensor.

Cells are numbered within a stream. In a stream of its own a sequence fills cells from the first on, so that the cell of a
token is its place in the sequence as long as nothing was taken out of its midst. As llama-kv-cells.h, without its sets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FREE = np.int32((1 << 31) - 1)
"""The position of a cell without a token: later than every token, so that nobody sees it."""


class Cells:
    """`n_cells` cells in each of `n_streams` streams.

    pos  (n_streams, n_cells) i32, FREE where no token lies
    seq  (n_streams, n_cells, n_words) u64: bit s says whether the cell belongs to sequence s. One bit a sequence is only
         needed where sequences share a stream; else the array has no words.
    """

    def __init__(self, n_cells: int, n_streams: int, n_seq_max: int) -> None:
        assert n_streams in (1, n_seq_max), (n_streams, n_seq_max)
        self.n_cells, self.n_streams, self.n_seq_max = n_cells, n_streams, n_seq_max
        self.shared = n_streams == 1 and n_seq_max > 1
        self.pos = np.full((n_streams, n_cells), FREE, np.int32)
        self.seq = np.zeros((n_streams, n_cells, -(-n_seq_max // 64) if self.shared else 0), np.uint64)
        self.used = np.zeros(n_streams, np.int64)  # cells with a token
        self.high = np.zeros(n_streams, np.int64)  # one more than the last cell with a token
        self._ends: list[int | None] = [0] * n_seq_max  # as far as they are known

    def stream_of(self, seq: int) -> int:
        """The number of the stream that a sequence's cells are in."""
        return 0 if self.n_streams == 1 else seq

    def mine(self, seq: int, n: int | None = None) -> NDArray[np.bool_]:
        """Of the first `n` cells of its stream those that belong to a sequence."""
        stream = self.stream_of(seq)
        n = int(self.high[stream]) if n is None else n
        if not self.shared:
            return np.not_equal(self.pos[stream, :n], FREE)
        bits: NDArray[np.uint64] = self.seq[stream, :n, seq // 64]
        mine: NDArray[np.bool_] = ((bits >> np.uint64(seq % 64)) & np.uint64(1)).astype(np.bool_)
        return mine

    def of(self, seq: int, p0: int = 0, p1: int | None = None) -> NDArray[np.int64]:
        """The cells of a sequence's tokens [p0, p1), in the order of positions."""
        stream = self.stream_of(seq)
        cells: NDArray[np.int64] = np.flatnonzero(self.mine(seq))
        pos = self.pos[stream, cells]
        chosen = (pos >= p0) & (pos < (FREE if p1 is None else p1))
        cells, pos = cells[chosen], pos[chosen]
        return cells if _rising(pos) else cells[np.argsort(pos, kind="stable")]

    def next(self, first: int, n: int) -> NDArray[np.int64] | None:
        """In each of `n` neighbouring streams the cell behind all tokens; None unless each has that and no hole before."""
        streams = slice(first, first + n)
        high = self.high[streams]
        if n == 1:
            whole = high[0] == self.used[first] and high[0] < self.n_cells
        else:
            whole = bool((high == self.used[streams]).all()) and int(high.max()) < self.n_cells
        return high.copy() if whole else None

    def free(self, stream: int, n: int) -> NDArray[np.int64] | None:
        """The first `n` cells without a token, None when there are fewer."""
        used, high = int(self.used[stream]), int(self.high[stream])
        if used + n > self.n_cells:
            return None
        if used == high:
            return np.arange(high, high + n, dtype=np.int64)
        holes = np.flatnonzero(self.pos[stream, :high] == FREE)[:n]
        return np.concatenate([holes, np.arange(high, high + n - len(holes), dtype=np.int64)])

    def put(self, stream: int, cells: NDArray[np.int64], pos: NDArray[np.int32], seq: NDArray[np.int32]) -> None:
        """Tokens come to lie in free cells."""
        self.pos[stream, cells] = pos
        if self.shared:
            self.seq[stream, cells] = 0
            self.seq[stream, cells, seq // 64] = np.uint64(1) << (seq % 64).astype(np.uint64)
        self.used[stream] += len(cells)
        self.high[stream] = max(int(self.high[stream]), int(cells.max()) + 1)
        for one in np.unique(seq).tolist() if self.shared else (stream,):
            end = self._ends[one]
            if end is not None:
                last = pos[seq == one] if self.shared else pos
                self._ends[one] = max(end, int(last.max()) + 1)

    def put_next(self, first: int, cells: NDArray[np.int64], pos: NDArray[np.int32]) -> None:
        """One token each of neighbouring streams from `first` on comes to lie behind all others there."""
        if len(cells) == 1:
            cell, p = int(cells[0]), int(pos[0])
            self.pos[first, cell] = p
            self.used[first] += 1
            self.high[first] = cell + 1
            end = self._ends[first]
            if end is not None and end <= p:
                self._ends[first] = p + 1
            return
        streams = slice(first, first + len(cells))
        self.pos[np.arange(first, first + len(cells)), cells] = pos
        self.used[streams] += 1
        self.high[streams] = cells + 1
        for one, p in enumerate(pos.tolist(), first):
            end = self._ends[one]
            if end is not None:
                self._ends[one] = max(end, p + 1)

    def take(self, seq: int, cells: NDArray[np.int64]) -> None:
        """A sequence gives up cells of its own; those of no other sequence become free."""
        if not len(cells):
            return
        stream = self.stream_of(seq)
        self._ends[seq] = None
        if self.shared:
            self.seq[stream, cells, seq // 64] &= ~(np.uint64(1) << np.uint64(seq % 64))
            cells = cells[~self.seq[stream, cells].any(axis=1)]
        self.pos[stream, cells] = FREE
        self.used[stream] -= len(cells)
        self._lower(stream)

    def share(self, seq: int, cells: NDArray[np.int64]) -> None:
        """A sequence has these cells too."""
        self._ends[seq] = None
        self.seq[0, cells, seq // 64] |= np.uint64(1) << np.uint64(seq % 64)

    def owners(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many sequences have each of these cells of a shared stream."""
        counts: NDArray[np.int64] = np.bitwise_count(self.seq[0, cells]).sum(axis=1, dtype=np.int64)
        return counts

    def clear(self) -> None:
        """Forget all tokens."""
        self.pos[:] = FREE
        self.seq[:] = 0
        self.used[:] = 0
        self.high[:] = 0
        self._ends = [0] * self.n_seq_max

    def end(self, seq: int) -> int:
        """One more than the last position of a sequence."""
        end = self._ends[seq]
        if end is None:
            pos = self.pos[self.stream_of(seq), : int(self.high[self.stream_of(seq)])][self.mine(seq)]
            end = self._ends[seq] = int(pos.max(initial=-1)) + 1
        return end

    def first(self, seq: int) -> int:
        """The first position of a sequence, 0 when it has none."""
        pos = self.pos[self.stream_of(seq), : int(self.high[self.stream_of(seq)])][self.mine(seq)]
        return int(pos.min()) if len(pos) else 0

    def _lower(self, stream: int) -> None:
        high = int(self.high[stream])
        if not self.used[stream]:
            self.high[stream] = 0
            return
        there = np.flatnonzero(self.pos[stream, :high] != FREE)
        self.high[stream] = int(there[-1]) + 1


def _rising(pos: NDArray[np.int32]) -> bool:
    return len(pos) < 2 or bool((pos[1:] > pos[:-1]).all())
