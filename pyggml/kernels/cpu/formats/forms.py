"""The forms in which kernels know blocks: what is left of a type when its name is forgotten.

Owns these records; knows no type and no op. Importing this does not import Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Primitive = Callable[..., Any]
"""Vector code: a function made of primitives of `pyggml.simd`, which kernels call."""
Part = tuple[int, int, int, int, int]
"""Bits of four bytes: (at, word, right, keep, left), as simd.put_columns_of takes them."""


@dataclass(frozen=True)
class Elements:
    """Single elements. elem: what 16 of them are loaded as ("f32", "u16"). to_f32, from_f32: f(16 of those), f(f32 lanes)."""

    elem: str
    to_f32: Primitive
    from_f32: Primitive


@dataclass(frozen=True)
class VectorBlocks:
    """32 values: value = d * (q - bias) + m.

    quants: (1 or 2 blocks) -> f(addr): their q in order, u8 x 64 of at most 31, or i8 where `signed`; with one block the rest is 0.
    columns: f(addr, stride): the same of one block of 16 rows, transposed: Tile of 8 columns (simd.columns).
    d: offset of the f16 scale, or of a byte of E8M0 where `exponent`. m: offset of the f16 minimum, which lies behind it;
        None = there is none.
    """

    quants: Callable[[int], Primitive]
    columns: Primitive
    d: int
    m: int | None = None
    bias: int = 0
    signed: bool = False
    exponent: bool = False


@dataclass(frozen=True)
class SuperBlocks:
    """256 values: value = scale of its run * (q - bias) + minimum of its run.

    quants: four f(addr): q of values 64 i to 64 i + 63, u8 x 64, or i8 x 64 where `signed`. They are at most 31 in runs
        of 32 and 63 in runs of 16, or 127 where `wide`.
    scales: f(addr) -> f32 x (256 / run), or a pair of them, scales and minimums, with `has_min`.
    run: values that share a scale, 16 or 32. bias: 0 or a power of two up to 128.
    """

    quants: tuple[Primitive, ...]
    scales: Primitive
    run: int
    has_min: bool = False
    bias: int = 0
    signed: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Columns:
    """Super-blocks of 16 rows, transposed while they are packed: where their q and the numbers of their runs lie.

    q, numbers, halves, flip, less, levels: as simd.put_columns_of and simd.put_products_of take them. Numbers are
    scales, each with its minimum behind it where there are minimums.
    """

    q: list[list[Part]]
    numbers: list[tuple[list[Part], int]]
    halves: list[tuple[int, int, int, float]]
    flip: int = 0
    less: int = 0
    levels: Any = None


@dataclass(frozen=True)
class Functions:
    """The vector code of one type, as makers, which are called when a kernel is compiled. A type has those that its row in
    this folder's table asks for.

    elements: () -> Elements.
    vector: () -> VectorBlocks. half: 0 or 1 -> f(block): values 0 to 15, or 16 to 31, as f32 lanes.
    super_blocks: () -> SuperBlocks. columns: () -> Columns; None = a row is unpacked at a time, and transposed then.
    dequantise: () -> f(block, to): all values of the block, as f32 at `to`.
    encode_pair: () -> f(block, x, y): two vectors of 16 values become the block.
    encode: () -> f(block, room): the values at `room`, which has WRITE_ROOM bytes, become the block.
    """

    elements: Callable[[], Elements] | None = None
    vector: Callable[[], VectorBlocks] | None = None
    half: Callable[[int], Primitive] | None = None
    super_blocks: Callable[[], SuperBlocks] | None = None
    columns: Callable[[], Columns] | None = None
    dequantise: Callable[[], Primitive] | None = None
    encode_pair: Callable[[], Primitive] | None = None
    encode: Callable[[], Primitive] | None = None
