"""What a text asks of who makes guesses at its next tokens, and how many of them are used. Makes none: drafts.py does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

DRAFT_SIZES = (1, 2, 3, 5, 7, 11, 15, 23, 31, 47, 63)
"""Lengths that drafts are cut to: with the token chosen last mostly multiples of 4, which kernels take at once, and few, so that few
graphs serve them all."""


def draft_size(n: int) -> int:
    """The longest of these lengths that is at most n tokens, 0 for none."""
    return max((size for size in DRAFT_SIZES if size <= n), default=0)


class Drafter(Protocol):
    """Of one text, or of several one after the other."""

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most so many tokens that may follow; none where there is no idea."""

    def kept(self, drafted: int, kept: int) -> None:
        """How many of a draft's tokens were chosen."""
