"""Where the threads of a plan must meet, and what may be used again: from the memory that steps read and write.

Owns the decision for each step, in the logarithm of the steps before it; knows no step's content. The plain form, which
holds each step against all before it, is the specification in tests/backend/test_hazards.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyggml.backend.spans import Spans

Span = tuple[int, int]  # addresses [from, to); nobody shares an empty one

MAX_REMEMBERED = 256
"""So many things are remembered at a time, the one that was longest not asked for goes first. A model's graph has few
alive at once; a graph of nodes that share nothing would have one a node, and each write is held against all of them."""


class Hazards:
    """What the steps since the last meeting of the threads have read and written."""

    def __init__(self) -> None:
        self.met()

    def met(self) -> None:
        """The threads have met: nothing that came before can be in the way."""
        self._reads, self._writes = Spans(), Spans()
        self._pending: set[int] = set()

    def in_the_way(self, reads: Iterable[Span], writes: Iterable[Span], pieces: Iterable[int]) -> bool:
        """Whether a step needs what one since the last meeting wrote, or would overwrite what one of those reads or
        writes. `pieces`: the work memory that it touches, by id()."""
        for piece in pieces:
            if piece in self._pending:
                return True
        for low, high in reads:
            if self._writes.overlaps(low, high):
                return True
        return any(self._writes.overlaps(low, high) or self._reads.overlaps(low, high) for low, high in writes)

    def add(self, reads: Iterable[Span], writes: Iterable[Span], written: Iterable[int]) -> None:
        """Count a step in. `written`: the work memory that it writes to, by id()."""
        for span in reads:
            self._reads.add(*span)
        for span in writes:
            self._writes.add(*span)
        self._pending.update(written)


class Memo:
    """What lowering made of operands, by key, for as long as nothing is written to their memory."""

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Any, Span]] = {}

    def remember(self, key: Any, value: Any, source: Span) -> None:
        """Keep `value`, made of the bytes of `source`."""
        self._kept.pop(key, None)
        if len(self._kept) >= MAX_REMEMBERED:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = value, source

    def remembered(self, key: Any) -> Any:
        """What was kept under `key`; None if there is nothing (any more)."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        self._kept[key] = found  # the last to go
        return found[0]

    def wrote(self, low: int, high: int) -> None:
        """Forget what was made of bytes of [low, high)."""
        if low < high:
            stale = [key for key, (_, (a, b)) in self._kept.items() if a < high and low < b and a < b]
            for key in stale:
                del self._kept[key]
