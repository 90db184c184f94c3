"""Blocks of weights on their way to the products on tensor cores: copied as they are into shared memory while the stage before is
multiplied, and unpacked from there.

Owns how much of a row that is, and where it lies. Pieces of 16 bytes are copied that lie at multiples of 16, so that rows may begin
anywhere: the first and the last piece of a row hold bytes of its neighbours, or what lies behind a tensor, which no value is
made of.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cuda.mma_parts import COLUMNS, LISTS, ROWS
from pyggml.kernels.cuda.unpack import ALIGNMENT, HALVES, has_minimum

DEEP = 128
"""Bytes of k at a time: 128 values of blocks, 64 of F16."""
GROUPS = DEEP // 32
LEFT, RIGHT = ROWS * DEEP, COLUMNS * DEEP
PIECE = 16
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


class Blocks(NamedTuple):
    """What is copied of a row at once: values of `stages` stages, which `size` bytes stand for, in so many pieces."""

    stages: int
    size: int
    pieces: int


@cache
def blocks_of(dtype: GGMLType) -> Blocks | None:
    """None: too much for two blocks of threads a multiprocessor, their unpacking reads global memory."""
    block, size = SIZES[dtype]
    values = max(block, DEEP)
    size *= values // block
    shift = PIECE - min(PIECE, ALIGNMENT.get(dtype, 2))
    found = Blocks(values // DEEP, size, -(-(size + shift) // PIECE))
    return found if areas(dtype, found).size <= MOST_SHARED else None


def areas(dtype: GGMLType, copied: Blocks | None) -> Areas:
    halves, minimum = dtype in HALVES, has_minimum(dtype, signed=True)
    wide, wide_right = (8 if halves else 4) * (2 if minimum else 1), 4 if not minimum else 16 if halves else 8
    left_scales = LISTS + LEFT + RIGHT
    right_scales = left_scales + ROWS * GROUPS * wide
    blocks = right_scales + COLUMNS * GROUPS * wide_right
    size = blocks + (0 if copied is None else ROWS * copied.pieces * PIECE)
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
    """-> f(row, first, rest, to, me): pieces of a thread's row from byte `first` on, which is a block's, of `rest` bytes to the row's
    end, on their way to `to` (where rows lie in shared memory). Two threads have a row."""
    from pyggml.kernels.cuda import device as d

    copied = blocks_of(dtype)
    assert copied is not None
    pieces, each = copied.pieces, (copied.pieces + 1) // 2
    sure = copied.size // PIECE if copied.stages > 1 else 0  # pieces that hold bytes of a row wherever it begins

    @d.inline
    def copy(row, first, rest, to, me):
        odd = d.i32((me & 1) * 16)
        begin = row + first
        shift = d.i32(begin & 15)
        source = begin - shift + odd
        place = d.i32(to + (me >> 1) * (16 * pieces) + odd)
        left = d.i32(rest + shift - odd)
        for i in range(each):
            if 2 * i + 1 < sure:
                d.cp_async16(place + 32 * i, source + 32 * i)
            elif 2 * i + 1 < pieces:
                if left > 32 * i:
                    d.cp_async16(place + 32 * i, source + 32 * i)
            elif odd == 0 and left > 32 * i:
                d.cp_async16(place + 32 * i, source + 32 * i)

    return copy
