"""Blocks of weights on their way to the products on tensor cores: copied as they are into shared memory while the stage before is
multiplied, and unpacked from there.

Owns how much of a row that is, and where it lies. Pieces of 16 bytes are copied that lie at multiples of 16, so that rows may begin
anywhere: the first and the last piece of a row hold bytes of its neighbours, or what lies behind a tensor, which no value is
made of. Of the blocks of PARTS a stage's half is copied; parts of less than 16 bytes by words, or they would take 32 bytes.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cuda.mma_parts import COLUMNS, LISTS, ROWS
from pyggml.kernels.cuda.unpack import ALIGNMENT, HALVES, PARTS, Held, has_minimum

DEEP = 128
"""Bytes of k at a time: 128 values of blocks, 64 of F16."""
GROUPS = DEEP // 32
LEFT, RIGHT = ROWS * DEEP, COLUMNS * DEEP
PIECE, WORD = 16, 4
MOST_SHARED = 49 * 1024
"""Of a block, where a multiprocessor has 100 KiB (compute capability 8.6, 8.9, 12.0) and is to hold two, of which each takes 1 KiB more."""


class Areas(NamedTuple):
    """Of a block's shared memory, from its beginning: bytes of weights, bytes of columns, scales of weights, scales of columns, blocks
    of weights as they are; all of it. Scales of a group of a row or a column take `wide` and `wide_right` bytes."""

    left: int
    right: int
    left_scales: int
    right_scales: int
    blocks: int
    size: int
    wide: int
    wide_right: int


class Range(NamedTuple):
    """Bytes of a row's blocks that are copied: from byte `at` on, `step` further for the second stage, where they lie in the row's place in
    shared memory, in how many pieces of how many bytes, of which the first `sure` hold bytes of the row wherever it begins."""

    at: int
    step: int
    place: int
    pieces: int
    piece: int
    sure: int


class Blocks(NamedTuple):
    """What is copied of a row: blocks of `size` bytes are the values of `stages` stages, of which `at_once` are copied together; their
    ranges, the bytes that these take, and, where not all of a block is copied, what of it there is."""

    stages: int
    size: int
    at_once: int
    ranges: tuple[Range, ...]
    row: int
    held: Held | None = None


@cache
def blocks_of(dtype: GGMLType) -> Blocks:
    """Whole blocks, and for the types of PARTS, whose blocks leave no room for two blocks of threads a multiprocessor, what a stage needs."""
    block, size = SIZES[dtype]
    values = max(block, DEEP)
    size *= values // block
    stages, shift = values // DEEP, PIECE - min(PIECE, ALIGNMENT.get(dtype, 2))
    if dtype not in PARTS:
        pieces = -(-(size + shift) // PIECE)
        whole = Range(0, 0, 0, pieces, PIECE, size // PIECE if stages > 1 else 0)
        return Blocks(stages, size, stages, (whole,), PIECE * pieces)
    ranges, end = [], 0
    for at, step, bytes_of in PARTS[dtype]:
        piece = PIECE if bytes_of > PIECE else WORD
        pieces = -(-(bytes_of + min(shift, piece - 2)) // piece)
        assert at + step + piece * (pieces - 1) < size  # the last one begins in the block
        ranges.append(Range(at, step, end, pieces, piece, pieces))
        end += piece * pieces
    held = Held(GROUPS, tuple(found.place for found in ranges), PIECE - WORD)
    return Blocks(stages, size, 1, tuple(ranges), end, held)


def areas(dtype: GGMLType) -> Areas:
    halves, minimum = dtype in HALVES, has_minimum(dtype, signed=True)
    wide, wide_right = (8 if halves else 4) * (2 if minimum else 1), 4 if not minimum else 16 if halves else 8
    left_scales = LISTS + LEFT + RIGHT
    right_scales = left_scales + ROWS * GROUPS * wide
    blocks = right_scales + COLUMNS * GROUPS * wide_right
    size = blocks + ROWS * blocks_of(dtype).row
    assert size <= MOST_SHARED, dtype
    return Areas(LISTS, LISTS + LEFT, left_scales, right_scales, blocks, size, wide, wide_right)


@cache
def from_shared_memory() -> ModuleType:
    """The vocabulary of kernels (device/) whose loads read shared memory; what else there is stays."""
    from pyggml.kernels.cuda import device as d

    made = ModuleType("shared_memory")
    for name in dir(d):
        word: Any = getattr(d, name)
        setattr(made, name, getattr(d, "s" + name, word) if name.startswith("ld_") else word)
    return made


def copying(dtype: GGMLType):
    """-> f(row, j0, row_end, to, me): what the stage from group j0 on needs of a thread's row, of `row_end` bytes, on its way to `to` (where
    rows lie in shared memory). Two threads have a row."""
    from pyggml.kernels.cuda import device as d

    stages, size, at_once, ranges, row_bytes, _ = blocks_of(dtype)
    halves = at_once < stages

    def copies(parts):
        """-> f(begin, half, rest, to, me): those ranges of blocks that begin there."""
        (at, step, place_of, pieces, piece, sure), *others = parts
        asynchronous, each = d.cp_async16 if piece == PIECE else d.cp_async4, (pieces + 1) // 2
        further = copies(others) if others else None

        @d.inline
        def copy(begin, half, rest, to, me):
            odd = d.i32((me & 1) * piece)
            if halves:
                begin += at + half * step
            shift = d.i32(begin & (piece - 1))
            source = begin - shift + odd
            place = d.i32(to + place_of + (me >> 1) * row_bytes + odd)
            left = d.i32(rest + shift - odd)
            for i in range(each):
                if 2 * i + 1 < sure:
                    asynchronous(place + 2 * piece * i, source + 2 * piece * i)
                elif 2 * i + 1 < pieces:
                    if left > 2 * piece * i:
                        asynchronous(place + 2 * piece * i, source + 2 * piece * i)
                elif odd == 0 and (piece < PIECE or left > 2 * piece * i):  # words are copied of whole blocks alone
                    asynchronous(place + 2 * piece * i, source + 2 * piece * i)

        if further is None:
            return copy

        @d.inline
        def copy_all(begin, half, rest, to, me):
            copy(begin, half, rest, to, me)
            further(begin, half, rest, to, me)

        return copy_all

    copy = copies(ranges)

    @d.inline
    def of_stage(row, j0, row_end, to, me):
        first = d.i32(d.shr(j0, 1 + stages) * size)
        copy(row + first, d.i32(d.shr(j0, 2) & 1) if halves else 0, row_end - first, to, me)

    return of_stage
