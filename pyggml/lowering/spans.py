"""Sets of addresses: spans [from, to) that do not overlap, in order, found and changed in the logarithm of their number.

Owns the structure alone; what the spans mean (memory that was written, memory that is free) is their users' business.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

BLOCK = 256
"""Spans lie in blocks of at most twice as many, so that putting one in between moves few."""


class Spans:
    """A set of whole numbers as disjoint spans. Spans that touch become one."""

    def __init__(self) -> None:
        self._lows: list[list[int]] = []
        self._highs: list[list[int]] = []
        self._heads: list[int] = []  # the first low of each block
        self._widest: list[int] = []  # the length of the longest span of each block; -1: to be counted anew

    def __bool__(self) -> bool:
        return bool(self._heads)

    def spans(self) -> list[tuple[int, int]]:
        """All of them, in order."""
        blocks = zip(self._lows, self._highs, strict=True)
        return [span for lows, highs in blocks for span in zip(lows, highs, strict=True)]

    def overlaps(self, low: int, high: int) -> bool:
        """Whether a number of [low, high) is in the set."""
        if low >= high or not self._heads:
            return False
        # of disjoint spans, the last one that begins before `high` is the one that ends last
        block = bisect_left(self._heads, high) - 1
        if block < 0:
            return False
        return self._highs[block][bisect_left(self._lows[block], high) - 1] > low

    def add(self, low: int, high: int) -> None:
        """Put the numbers of [low, high) into the set."""
        if low >= high:
            return
        while self._heads:
            block = bisect_right(self._heads, high) - 1
            if block < 0:
                break
            at = bisect_right(self._lows[block], high) - 1
            if self._highs[block][at] < low:
                break
            first, last = self._lows[block][at], self._highs[block][at]
            if first <= low and high <= last:
                return
            low, high = min(low, first), max(high, last)
            self._delete(block, at)
        self._insert(low, high)

    def take(self, size: int) -> int:
        """Take the first `size` numbers of the first span that has so many out of the set; -> the lowest of them."""
        assert size > 0
        for block, widest in enumerate(self._widest):
            if 0 <= widest < size:
                continue
            lows, highs = self._lows[block], self._highs[block]
            for at, low in enumerate(lows):
                if highs[at] - low == size:
                    self._delete(block, at)
                    return low
                if highs[at] - low > size:
                    lows[at] = low + size
                    self._heads[block], self._widest[block] = lows[0], -1
                    return low
            self._widest[block] = max(h - w for w, h in zip(lows, highs, strict=True))
        raise ValueError(f"no {size} numbers in a row")

    def _insert(self, low: int, high: int) -> None:
        if not self._heads:
            self._lows, self._highs, self._heads, self._widest = [[low]], [[high]], [low], [-1]
            return
        block = max(0, bisect_left(self._heads, low) - 1)
        lows, highs = self._lows[block], self._highs[block]
        at = bisect_left(lows, low)
        lows.insert(at, low)
        highs.insert(at, high)
        self._heads[block], self._widest[block] = lows[0], -1
        if len(lows) > 2 * BLOCK:
            self._lows[block : block + 1] = [lows[:BLOCK], lows[BLOCK:]]
            self._highs[block : block + 1] = [highs[:BLOCK], highs[BLOCK:]]
            self._heads[block : block + 1] = [lows[0], lows[BLOCK]]
            self._widest[block : block + 1] = [-1, -1]

    def _delete(self, block: int, at: int) -> None:
        lows, highs = self._lows[block], self._highs[block]
        del lows[at], highs[at]
        if lows:
            self._heads[block], self._widest[block] = lows[0], -1
        else:
            del self._lows[block], self._highs[block], self._heads[block], self._widest[block]


FEW = 24
"""So many pieces of memory that are in use at a time are gone through one by one."""


def first_fit(pieces: Iterable[tuple[int, int, int]], step: int) -> tuple[list[int], int]:
    """Addresses for pieces of memory (size, first, last), in order of `first`, and the bytes in all. Each gets the
    lowest multiple of `step` that is free; a piece's memory is free again for those that begin after its `last`."""
    pieces = list(pieces)
    addresses: list[int] = []
    used: list[tuple[int, int, int]] = []  # (from, to, last), ascending
    top = 0
    for size, first, last in pieces:
        if not size:
            addresses.append(0)
            continue
        length, at, number = -(-size // step) * step, 0, 0
        used = [piece for piece in used if piece[2] >= first]
        for low, high, _ in used:
            if low - at >= length:
                break
            at, number = high, number + 1
        if len(used) > FEW:
            return _first_fit_of_many(pieces, step)
        used.insert(number, (at, at + length, last))
        addresses.append(at)
        top = max(top, at + length)
    return addresses, top


def _first_fit_of_many(pieces: Iterable[tuple[int, int, int]], step: int) -> tuple[list[int], int]:
    """The same in the logarithm of their number."""
    free = Spans()
    free.add(0, 1 << 63)
    alive: list[tuple[int, int, int]] = []  # a heap of (last, from, to)
    addresses, top = [], 0
    for size, first, last in pieces:
        while alive and alive[0][0] < first:
            free.add(*heapq.heappop(alive)[1:])
        length = -(-size // step) * step
        at = free.take(length) if length else 0
        if length:
            heapq.heappush(alive, (last, at, at + length))
        addresses.append(at)
        top = max(top, at + length)
    return addresses, top
