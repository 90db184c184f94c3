"""What memories have in common that know of a sequence only how far it goes: what is cut off is forgotten by that alone.

Owns the ends; what lies before them is the classes' own.
"""

from __future__ import annotations

import numpy as np

from pyggml.errors import ContextError
from pyggml.memory.base import Checkpoint, Memory
from pyggml.memory.ubatch import NOBODY, Ubatch


class Ended(Memory):
    """ends: tokens of each sequence, from the first on. Nothing can be shifted."""

    n_seq_max: int
    ends: list[int]

    def follow(self, ub: Ubatch) -> None:
        """What has been computed: each sequence ends behind its last token."""
        for seq in np.unique(ub.seq[ub.seq != NOBODY]).tolist():
            self.ends[seq] = int(ub.pos[ub.seq == seq].max()) + 1

    def begin(self, seq: int) -> int:
        return 0

    def end(self, seq: int) -> int:
        return self.ends[seq]

    def remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        if not self.can_remove(seq, p0, p1):
            return False
        if p1 is None or p1 >= self.ends[seq]:
            self.ends[seq] = min(self.ends[seq], p0)
        return True

    def can_remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        """Its last tokens: what was made of those before them alone stays."""
        end = self.ends[seq]
        return p0 >= end or p1 is None or p1 >= end or p1 <= p0

    @property
    def rewinds(self) -> bool:
        return True

    def keep(self, seq: int) -> None:
        self.ends = [end if s == seq else 0 for s, end in enumerate(self.ends)]

    def shift(self, seq: int, p0: int, p1: int | None, by: int) -> None:
        if why := self.why_not_shift(seq, p0, p1, by):
            raise ContextError(why)

    def why_not_shift(self, seq: int, p0: int, p1: int | None, by: int) -> str:
        return self.why_no_shift if by and p0 < self.ends[seq] else ""

    def clear(self) -> None:
        self.ends = [0] * self.n_seq_max

    def checkpoint(self, seq: int) -> Checkpoint | None:
        return None

    def restore(self, seq: int, checkpoint: Checkpoint | None, end: int) -> bool:
        if self.ends[seq] < end:
            return False
        self.ends[seq] = end
        return True
