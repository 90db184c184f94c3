"""Batches: tokens of one or several sequences that are to be computed, and their cut into micro-batches.

Owns what a caller says and the order of work. As llama_batch and llama_batch_allocr (llama-batch.cpp), where each token
belongs to one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import ComputeError, ContextError
from pyggml.memory.ubatch import NOBODY, Ubatch

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64)
"""Sequences that a micro-batch of one token each is filled up to, so that few graphs serve all batches."""

LONG = 64
"""A sequence with so many tokens left is computed alone: then nothing is gained by company."""


@dataclass(frozen=True)
class Batch:
    """tokens, pos, seq (n,) i32: token, its position in its sequence, the sequence; outputs (n,) bool: whether its logits
    are wanted. The tokens of a sequence stand in the order of their positions. one_by_one (n,) bool: those of which each must
    have the bits that it has when it is computed alone; of a sequence all or none."""

    tokens: NDArray[np.int32]
    pos: NDArray[np.int32]
    seq: NDArray[np.int32]
    outputs: NDArray[np.bool_]
    one_by_one: NDArray[np.bool_]

    @classmethod
    def of(
        cls, tokens: Sequence[int] | NDArray[np.int32], start: int, seq: int = 0,
        logits: Literal["last", "all", "none"] = "last", one_by_one: bool = False,
    ) -> Batch:  # fmt: skip
        """Tokens of one sequence, the first at position `start`."""
        ids = np.asarray(tokens, np.int32).reshape(-1)
        outputs = np.full(ids.size, logits == "all")
        if logits == "last" and ids.size:
            outputs[-1] = True
        pos = np.arange(start, start + ids.size, dtype=np.int32)
        return cls(ids, pos, np.full(ids.size, seq, np.int32), outputs, np.full(ids.size, one_by_one))

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Several after each other. Raises ContextError when there is none."""
        if not batches:
            raise ContextError("no tokens to decode")
        return cls(
            *(
                np.concatenate([getattr(b, name) for b in batches])
                for name in ("tokens", "pos", "seq", "outputs", "one_by_one")
            )
        )

    @classmethod
    def of_each(cls, tokens: Sequence[int] | NDArray[np.int32], pos: Sequence[int], seqs: Sequence[int]) -> Batch:
        """One token of each of some sequences, all with logits."""
        ids, places, numbers = (np.array(values, np.int32) for values in (tokens, pos, seqs))
        return cls(ids, places, numbers, np.ones(len(tokens), np.bool_), np.zeros(len(tokens), np.bool_))

    def part(self, rows: NDArray[np.int64]) -> Batch:
        """Some of the tokens."""
        return Batch(self.tokens[rows], self.pos[rows], self.seq[rows], self.outputs[rows], self.one_by_one[rows])

    def check(self, n_vocab: int, n_seq_max: int, n_ctx_seq: int, end: Callable[[int], int]) -> None:
        """Raises ContextError, ComputeError for what cannot be decoded. end: tokens that a sequence has."""
        if not self.n:
            raise ContextError("no tokens to decode")
        bad = np.flatnonzero((self.tokens < 0) | (self.tokens >= n_vocab))
        if bad.size:
            raise ComputeError(f"token {self.tokens[bad[0]]} is outside the vocabulary of {n_vocab}")
        single = self.singles
        for i, seq in enumerate((self.seq if single else np.unique(self.seq)).tolist()):
            if not 0 <= seq < n_seq_max:
                raise ContextError(f"sequence {seq}: there are {n_seq_max}, numbered from 0")
            pos, n = self.pos[i : i + 1] if single else self.pos[self.seq == seq], end(seq)
            if pos[0] != n or (not single and (np.diff(pos) != 1).any()):
                raise ContextError(
                    f"sequence {seq}: positions {pos[0]} to {pos[-1]} of {len(pos)} tokens, must follow {n - 1} one by one"
                )
            if n + len(pos) > n_ctx_seq:
                raise ContextError(f"{len(pos)} tokens after {n} do not fit into a context of {n_ctx_seq}")

    @property
    def n(self) -> int:
        return len(self.tokens)

    @property
    def singles(self) -> bool:
        """Whether there is one token of each sequence, in the order of their numbers."""
        return bool((self.seq[1:] > self.seq[:-1]).all())


Part = tuple[Ubatch, NDArray[np.int64]]
"""A micro-batch, and for each of its rows the token of the batch, -1 for a row that only fills up."""


def split(batch: Batch, n_ubatch: int, n_streams: int, n_seq_max: int, fill: bool = True) -> Iterator[Part]:
    """Micro-batches of at most `n_ubatch` rows, in an order in which each sequence's tokens keep theirs.

    Where sequences have streams of their own, a micro-batch holds equally many tokens of sequences with neighbouring
    numbers; `fill` lets rows stand for sequences in between that have none, and makes sizes few. Tokens that are computed one
    by one have micro-batches of their own.
    """
    apart = batch.one_by_one
    if apart.any() and not apart.all():
        for some in (np.flatnonzero(~apart), np.flatnonzero(apart)):
            for ub, rows in split(batch.part(some), n_ubatch, n_streams, n_seq_max, fill):
                yield ub, np.where(rows >= 0, some[rows], -1)
        return
    if n_streams == 1:
        for start in range(0, batch.n, n_ubatch):
            rows = np.arange(start, min(start + n_ubatch, batch.n))
            if fill and n_seq_max > 1 and 1 < len(rows) <= SIZES[-1] and batch.outputs[rows].all():
                size = min(_size(len(rows)), n_ubatch)
                rows = np.concatenate([rows, np.full(size - len(rows), -1)])
            yield _part(batch, rows, 1, 0)
        return
    most = min(n_ubatch, n_streams)
    if 1 < batch.n <= most and (not fill or min(_size(batch.n), most) == batch.n) and batch.singles:
        first = int(batch.seq[0])
        if int(batch.seq[-1]) - first == batch.n - 1:  # most steps of decoding: nothing to cut or to fill up
            outputs = np.full(batch.n, bool(batch.outputs.any()))
            yield Ubatch(batch.tokens, batch.pos, batch.seq, outputs, batch.n, first), np.arange(batch.n)
            return
    left = {int(s): np.flatnonzero(batch.seq == s) for s in np.unique(batch.seq)}
    while left:
        singles = sorted(seq for seq, rows in left.items() if len(rows) == 1)
        if singles:
            for first, n in _ranges(singles, most, n_streams, fill):
                rows = np.array(
                    [left.pop(s)[0] if s in left and len(left[s]) == 1 else -1 for s in range(first, first + n)]
                )
                yield _part(batch, rows, n, first)
            continue
        first = min(left)
        n = 1
        while first + n in left and (n + 1) * LONG <= n_ubatch:
            n += 1
        each = min(min(len(left[s]) for s in range(first, first + n)), n_ubatch // n)
        if each >= LONG:
            n, each = 1, min(len(left[first]), n_ubatch)
        rows = np.concatenate([left[s][:each] for s in range(first, first + n)])
        yield _part(batch, rows, n, first)
        for s in range(first, first + n):
            left[s] = left[s][each:]
            if not len(left[s]):
                del left[s]


def place_part(
    part: Part, place: Callable[[Ubatch], Any], n_ubatch: int, n_streams: int, n_seq_max: int
) -> list[tuple[Ubatch, NDArray[np.int64], Any]]:
    """A micro-batch, its rows' tokens of the batch, and where `place` puts it; cut into several, which lie in different streams,
    where rows that only fill up find no cell. Empty: there is no room for its tokens."""
    ub, rows = part
    placement = place(ub)
    if placement is not None:
        return [(ub, rows, placement)]
    real = rows >= 0
    if real.all():
        return []
    apart = np.full(int(real.sum()), ub.one_by_one)
    plain = Batch(ub.tokens[real], ub.pos[real], ub.seq[real], ub.outputs[real], apart)
    found = []
    for less, index in split(plain, n_ubatch, n_streams, n_seq_max, fill=False):
        placement = place(less)
        if placement is None:
            return []
        found.append((less, rows[real][index], placement))
    return found


def _part(batch: Batch, rows: NDArray[np.int64], n_seqs: int, first: int) -> Part:
    """These rows of a batch, -1 of what fills up, as the micro-batch of `n_seqs` sequences from `first` on."""
    real = rows >= 0
    outputs = np.where(real, batch.outputs[rows], False)
    if not real.all() or n_seqs > 1:  # whoever fills up has logits too where others have: one graph fewer
        outputs = np.full(len(rows), bool(outputs.any())) if len(rows) == n_seqs else outputs | ~real
    return (
        Ubatch(
            np.where(real, batch.tokens[rows], 0).astype(np.int32),
            np.where(real, batch.pos[rows], 0).astype(np.int32),
            np.where(real, batch.seq[rows], NOBODY).astype(np.int32),
            outputs,
            n_seqs,
            first,
            not real.all(),
            bool(batch.one_by_one.any()),
        ),
        rows,
    )


def _size(n: int) -> int:
    return next((size for size in SIZES if size >= n), n)


def _ranges(seqs: list[int], most: int, n_streams: int, fill: bool) -> Iterator[tuple[int, int]]:
    """(first, number) of ranges of sequences that cover all of `seqs`; at least half of a range is wanted."""
    span = seqs[-1] - seqs[0] + 1
    gaps = [b - a for a, b in pairwise(seqs)]
    dense = span == len(seqs) or (fill and 2 * len(seqs) >= span)
    if not dense or span > most:
        at = gaps.index(max(gaps)) + 1 if not dense else sum(seq < seqs[0] + most for seq in seqs)
        yield from _ranges(seqs[:at], most, n_streams, fill)
        yield from _ranges(seqs[at:], most, n_streams, fill)
        return
    n = min(_size(span), most) if fill and span > 1 else span
    n = max(n, span)
    yield max(0, min(seqs[0], n_streams - n)), n
