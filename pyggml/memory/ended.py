"""What memories have in common that know of a sequence only how far it goes: what is cut off is forgotten by that alone.

Owns the ends; what lies before them is the classes' own.
"""

from __future__ import annotations

from pyggml.errors import ContextError
from pyggml.memory.base import Checkpoint, Memory


class Ended(Memory):
    """ends: tokens of each sequence. Nothing can be shifted."""

    n_seq_max: int
    ends: list[int]

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
