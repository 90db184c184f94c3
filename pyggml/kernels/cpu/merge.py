"""Merging of neighbours by rank, compiled: what BPE does to a long text. Owns the machine code and its calling. The
specification is `pyggml.tokenizer.spm.merge_by_score`.

Of all neighbours that can be merged those of the lowest rank come first, of equals the leftmost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
NEVER = (1 << 31) - 1  # a rank


def merge_kernel():
    """void(pieces, ends, before, ranks, heap, keys, table, joined, n, n_pairs): pieces i32 (n,), of which those that are left
    have a number; ends i32 (n,): the place behind each; before, ranks i32 (n,) and heap i64 (3 n,): room.

    An entry of the heap is a rank and the place of the left one of two; it counts while that is the rank of what stands there.
    """
    from pyggml.simd import U, device, i32_at, i64_at, np, put_i32, put_i64

    i64, four, eight, never = np.int64, U(4), U(8), NEVER

    @device
    def find(pieces, left, right, keys, n_pairs):
        """The row of the pair, -1: none."""
        a, b = i64(i32_at(pieces + U(left) * four)), i64(i32_at(pieces + U(right) * four))
        if a < 0 or b < 0:
            return i64(-1)
        key, low, high = a << i64(32) | b, i64(0), i64(n_pairs)
        while low < high:
            middle = (low + high) >> i64(1)
            if i64_at(keys + U(middle) * eight) < key:
                low = middle + i64(1)
            else:
                high = middle
        if low < n_pairs and i64_at(keys + U(low) * eight) == key:
            return low
        return i64(-1)

    @device
    def push(heap, count, value):
        i = i64(count)
        while i > 0:
            parent = (i - i64(1)) >> i64(1)
            other = i64_at(heap + U(parent) * eight)
            if other <= value:
                break
            put_i64(heap + U(i) * eight, other)
            i = parent
        put_i64(heap + U(i) * eight, value)

    @device
    def pop(heap, count):
        """Without the first entry; `count` of those that are left."""
        value, i = i64_at(heap + U(count) * eight), i64(0)
        while True:
            child = i64(2) * i + i64(1)
            if child >= count:
                break
            least = i64_at(heap + U(child) * eight)
            if child + i64(1) < count:
                other = i64_at(heap + U(child + i64(1)) * eight)
                if other < least:
                    child, least = child + i64(1), other
            if value <= least:
                break
            put_i64(heap + U(i) * eight, least)
            i = child
        put_i64(heap + U(i) * eight, value)

    @device
    def consider(pieces, left, right, ranks, heap, count, keys, table, n_pairs):
        """Note the rank of two neighbours; the heap's new size."""
        row = find(pieces, left, right, keys, n_pairs)
        if row < 0:
            put_i32(ranks + U(left) * four, np.int32(never))
            return i64(count)
        rank = i32_at(table + U(row) * four)
        put_i32(ranks + U(left) * four, rank)
        push(heap, count, i64(rank) << i64(32) | i64(left))
        return i64(count) + i64(1)

    def merge_kernel(pieces, ends, before, ranks, heap, keys, table, joined, n, n_pairs):
        count = i64(0)
        for i in range(n):
            put_i32(ends + U(i) * four, np.int32(i + 1))
            put_i32(before + U(i) * four, np.int32(i - 1))
        for i in range(n - 1):
            count = consider(pieces, i64(i), i64(i + 1), ranks, heap, count, keys, table, n_pairs)
        put_i32(ranks + U(n - 1) * four, np.int32(never))
        while count > 0:
            first = i64_at(heap)
            count -= i64(1)
            pop(heap, count)
            rank, left = first >> i64(32), first & i64(0xFFFFFFFF)
            if i64(i32_at(ranks + U(left) * four)) != rank:  # one of the two has been merged meanwhile
                continue
            right = i64(i32_at(ends + U(left) * four))
            row = find(pieces, left, right, keys, n_pairs)
            end = i32_at(ends + U(right) * four)
            put_i32(pieces + U(left) * four, i32_at(joined + U(row) * four))
            put_i32(pieces + U(right) * four, np.int32(-1))
            put_i32(ranks + U(right) * four, np.int32(never))
            put_i32(ranks + U(left) * four, np.int32(never))
            put_i32(ends + U(left) * four, end)
            if end < n:
                put_i32(before + U(end) * four, np.int32(left))
                count = consider(pieces, left, i64(end), ranks, heap, count, keys, table, n_pairs)
            previous = i64(i32_at(before + U(left) * four))
            if previous >= 0:
                count = consider(pieces, previous, left, ranks, heap, count, keys, table, n_pairs)

    return merge_kernel


@functools.cache
def _compiled() -> Callable[..., None]:
    from pyggml import jit

    return jit.function(jit.Spec("merge", "merge_kernel", (), "void(u64,u64,u64,u64,u64,u64,u64,u64,i64,i64)"))


def merged(pieces: I32, keys: NDArray[np.int64], ranks: I32, joined: I32) -> list[int]:
    """Where the pieces that are left begin, and `len(pieces)`. `pieces`: (n,), a number each, below 0: is never merged. A pair
    (left << 32 | right) of the sorted `keys` has a rank, from 0 on, and the number of what it becomes."""
    n = len(pieces)
    assert 0 < n < NEVER and len(keys) == len(ranks) == len(joined)
    assert keys.dtype == np.int64 and ranks.dtype == joined.dtype == np.int32
    work = np.array(pieces, np.int32)
    ends, before, places = (np.empty(n, np.int32) for _ in range(3))
    heap = np.empty(3 * n, np.int64)
    arrays = (work, ends, before, places, heap, keys, ranks, joined)
    assert all(array.flags.c_contiguous for array in arrays)
    _compiled()(*(array.ctypes.data for array in arrays), n, len(keys))
    starts, at, after = [0], 0, ends.tolist()
    while at < n:
        at = after[at]
        starts.append(at)
    return starts
