"""The tokens of each sequence themselves, for models that look something up by the last few of them.

Owns them, in this process's memory; nothing lies on a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.base import Device
from pyggml.errors import ContextError, StateError
from pyggml.memory.base import Bytes, Placement
from pyggml.memory.ended import Ended
from pyggml.memory.ubatch import NOBODY, Ubatch


@dataclass(frozen=True)
class TokensPlacement(Placement):
    """The micro-batch, whose tokens are noted when it has run."""

    ub: Ubatch


class Tokens(Ended):
    """`n_ctx` of them for each sequence."""

    n_bytes = 0  # on devices
    layers = ()
    row = 4  # bytes of a token

    def __init__(self, n_ctx: int, n_seq_max: int = 1) -> None:
        self.n_seq_max = self.n_streams = n_seq_max
        self.tokens = np.zeros((n_seq_max, n_ctx), np.int32)
        self.ends = [0] * n_seq_max

    def allocate(self, devices: Sequence[Device]) -> None:
        """There is nothing to allocate."""

    def before(self, ub: Ubatch, n: int) -> NDArray[np.int32]:
        """(n, tokens of the micro-batch): of each token the one before it, the one before that, and so on; -1: there is none."""
        each = ub.n // ub.n_seqs
        found = np.full((n, ub.n), -1, np.int32)
        for i in range(ub.n_seqs):
            part = slice(i * each, (i + 1) * each)
            seq, start = int(ub.seq[part.start]), int(ub.pos[part.start])
            known = self.tokens[seq, max(0, start - n) : start] if seq != NOBODY else self.tokens[0, :0]
            line = np.concatenate([np.full(n - len(known), -1, np.int32), known, ub.tokens[part]])
            for back in range(1, n + 1):
                found[back - 1, part] = line[n - back : n - back + each]
        return found

    def place(self, ub: Ubatch) -> TokensPlacement | None:
        return TokensPlacement(ub) if int(ub.pos.max()) < self.tokens.shape[1] else None

    def commit(self, placement: Placement) -> None:
        assert isinstance(placement, TokensPlacement)
        ub = placement.ub
        real = ub.seq != NOBODY
        self.tokens[ub.seq[real], ub.pos[real]] = ub.tokens[real]
        self.follow(ub)

    def shape(self, placement: Placement) -> int:
        """Graphs do not depend on it."""
        return 0

    @property
    def why_no_shift(self) -> str:
        return "what was looked up by neighbouring tokens stays as it was"

    def copy(self, src: int, dst: int, p0: int = 0, p1: int | None = None) -> None:
        if src == dst:
            return
        if why := self.why_not_copy(src, p0, p1):
            raise ContextError(why)
        end = self.ends[src] if p1 is None else min(p1, self.ends[src])
        self.tokens[dst, :end], self.ends[dst] = self.tokens[src, :end], end

    def why_not_copy(self, src: int, p0: int = 0, p1: int | None = None) -> str:
        return "" if not p0 else f"tokens are copied from the first on, not from {p0}"

    def pieces(self, seq: int) -> Iterator[bytes]:
        """The tokens (i32)."""
        yield self.tokens[seq, : self.ends[seq]].astype("<i4").tobytes()

    def dump_size(self, seq: int) -> int:
        return 4 * self.ends[seq]

    def loads(self, data: Bytes, end: int) -> bool:
        return len(data) >= 4 * end

    def load(self, seq: int, data: Bytes, end: int | None = None) -> None:
        self.ends[seq] = 0
        if len(data) % 4 or len(data) > 4 * self.tokens.shape[1]:
            raise StateError(f"{len(data)} bytes are no tokens of a context of {self.tokens.shape[1]}")
        tokens = np.frombuffer(bytes(data), "<i4")[:end]
        self.tokens[seq, : len(tokens)], self.ends[seq] = tokens, len(tokens)

    def free(self) -> None:
        """There is nothing to give back."""
