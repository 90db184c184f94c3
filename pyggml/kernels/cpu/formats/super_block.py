"""One form for all super-blocks of 256 values: every kernel is written for it.

Owns that form; knows no type. Imported by factories only (Numba).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyggml import simd as v
from pyggml.jit import device


@dataclass(frozen=True)
class SuperBlocks:
    """value = scale of its run * (q - bias) + minimum of its run.

    quants: four f(addr): q of values 64 i to 64 i + 63, u8 x 64, or i8 x 64 where `signed`. They are at most 31 in runs
        of 32 and 63 in runs of 16, or 127 where `wide`.
    scales: f(addr) -> f32 x (256 / run), or a pair of them, scales and minimums, with `has_min`.
    run: values that share a scale, 16 or 32. bias: 0 or a power of two up to 128.
    """

    quants: tuple[Callable[[int], Any], ...]
    scales: Callable[[int], Any]
    run: int
    has_min: bool = False
    bias: int = 0
    signed: bool = False
    wide: bool = False


def lanes(index, shift, mask, to=0):
    """-> f(bytes): i32 lanes (bytes[index] >> shift & mask) << to, each list one entry a lane."""
    pick, down = v.shuffler(index), v.constant("i32", shift)
    keep, up = v.constant("i32", mask), v.constant("i32", [to] * len(index))
    if to == 0:
        return device(lambda x: (v.widen(pick(x)) >> down()) & keep())
    return device(lambda x: ((v.widen(pick(x)) >> down()) & keep()) << up())
