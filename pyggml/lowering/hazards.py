"""Where a plan needs barriers, and what may be used again: from the memory that steps read and write.

Owns the decision for each step, in the logarithm of the steps before it. The plain form, which holds each step against
all before it, is the specification in tests/lowering/test_hazards.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pyggml.lowering.spans import Spans

Span = tuple[int, int]  # addresses [from, to); nobody shares an empty one

MAX_REMEMBERED = 256
"""So many things are remembered at a time, the one that was longest not asked for goes first. A model's graph has few
alive at once; a graph of nodes that share nothing would have one a node, and each write is held against all of them."""


FEW = 8
"""So many spans are compared one by one. Mostly a barrier comes before there are more."""


class Hazards:
    """What the steps since the last barrier have read and written."""

    def __init__(self) -> None:
        self._pending: set[int] = set()
        self._few_reads: list[Span] = []
        self._few_writes: list[Span] = []
        self.barrier()

    def barrier(self) -> None:
        """There is a barrier here: nothing that came before can be in the way."""
        self._reads: Spans | None = None
        self._writes: Spans | None = None
        self._pending.clear()
        self._few_reads.clear()
        self._few_writes.clear()

    def in_the_way(self, reads: Iterable[Span], writes: Iterable[Span], pieces: Iterable[int]) -> bool:
        """Whether a step needs what one since the last barrier wrote, or would overwrite what one of those reads or
        writes. `pieces`: the work memory that it touches, by id()."""
        if self._pending and not self._pending.isdisjoint(pieces):
            return True
        few_reads, few_writes, all_reads, all_writes = self._few_reads, self._few_writes, self._reads, self._writes
        for low, high in reads:
            if few_writes and _overlaps(low, high, few_writes):
                return True
            if all_writes is not None and all_writes.overlaps(low, high):
                return True
        for low, high in writes:
            if few_writes and _overlaps(low, high, few_writes):
                return True
            if few_reads and _overlaps(low, high, few_reads):
                return True
            if all_writes is not None and all_writes.overlaps(low, high):
                return True
            if all_reads is not None and all_reads.overlaps(low, high):
                return True
        return False

    def add(self, reads: Iterable[Span], writes: Iterable[Span], written: Collection[int]) -> None:
        """Count a step in. `written`: the work memory that it writes to, by id()."""
        self._few_reads += reads
        self._few_writes += writes
        if written:
            self._pending.update(written)
        if len(self._few_reads) > FEW:
            self._reads = self._put_away(self._reads, self._few_reads)
        if len(self._few_writes) > FEW:
            self._writes = self._put_away(self._writes, self._few_writes)

    def _put_away(self, spans: Spans | None, few: list[Span]) -> Spans:
        spans = Spans() if spans is None else spans
        for low, high in few:
            spans.add(low, high)
        few.clear()
        return spans


def _overlaps(low: int, high: int, spans: list[Span]) -> bool:
    if low < high:
        for a, b in spans:
            if a < high and low < b and a < b:
                return True
    return False


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
        if low < high and self._kept:
            stale = [key for key, (_, (a, b)) in self._kept.items() if a < high and low < b and a < b]
            for key in stale:
                del self._kept[key]
