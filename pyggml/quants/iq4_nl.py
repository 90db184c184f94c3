"""IQ4_NL: 32 values d * table[q] in 18 bytes: four bits that number sixteen levels, closer together near zero. IQ4_XS
has these levels in super-blocks."""

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Bytes, Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import join_halves, reciprocal, split_halves
from pyggml.quants.search import TINY, columns, in_batches, largest, total

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("qs", "u1", (16,)),  # value j in the low half of byte j, value j + 16 in the high half
    ]
)
assert LAYOUT.itemsize == 18

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""kvalues_iq4nl of ggml-common.h."""

# Between two levels lies a multiple of 1/2, where the upper one begins: one look-up by floor(2 x) finds the nearest.
_HALVES = np.arange(-256, 256)
_INDEX: Bytes = np.searchsorted(LEVELS[:-1].astype(np.int64) + LEVELS[1:], _HALVES, side="right").astype(np.uint8)
_LEVEL: Floats = LEVELS.astype(np.float32)[_INDEX]


def _slot(x: Floats) -> NDArray[np.int16]:
    twice = np.floor(x + x)
    np.fmin(twice, np.float32(255), out=twice)  # a NaN takes the highest level, as in C
    np.fmax(twice, np.float32(-256), out=twice)
    slots: NDArray[np.int16] = twice.astype(np.int16) + np.int16(256)
    return slots


def nearest_level(x: Floats) -> Bytes:
    """Index of the level nearest to each x, the upper one of two (ggml-quants.c best_index_int8)."""
    index: Bytes = _INDEX[_slot(x)]
    return index


def best_scale(x: Floats, tries: int = 7) -> Floats:
    """(32, n) -> (n,): the scale of each column that leaves the least error, weighted by x^2 (quantize_row_iq4_nl_impl).

    It is looked for among as many `tries` on either side of the one that maps the largest value to the lowest level.
    """
    extreme, magnitude = largest(x)
    weights = x * x

    def sums(by: Floats) -> tuple[Floats, Floats]:
        level = _LEVEL[_slot(by * x)]
        wq = weights * level
        return total(wq * x), total(wq * level)

    sumqx, sumq2 = sums(np.float32(1) / (-extreme / np.float32(LEVELS[0])))
    d = np.where(sumq2 > 0, sumqx / sumq2, np.float32(0))
    best = d * sumqx
    for i in range(-tries, tries + 1):
        sumqx, sumq2 = sums(np.float32(i + int(LEVELS[0])) / extreme)
        better = (sumq2 > 0) & (sumqx * sumqx > best * sumq2)
        d = np.where(better, sumqx / sumq2, d)
        best = np.where(better, d * sumqx, best)
    return np.where(magnitude < TINY, np.float32(0), d)


@in_batches
def quantize(values: Floats) -> Records:
    """ggml-quants.c quantize_iq4_nl."""
    d = best_scale(columns(values, 32))
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)
    records["qs"] = join_halves(nearest_level(reciprocal(d)[:, None] * values))
    return records


def convert(values: Floats) -> Records:
    """The largest value is mapped to the lowest level, then the scale fitted to the levels that gives
    (ggml-quants.c quantize_row_iq4_nl_ref)."""
    extreme, magnitude = largest(columns(values, 32))
    by = np.where(magnitude < TINY, np.float32(0), np.float32(1) / (extreme / np.float32(LEVELS[0])))
    x = values.T
    q = nearest_level(by * x)
    weights = x * x
    wq = weights * LEVELS.astype(np.float32)[q]
    sumqx, sumq2 = total(wq * x), total(wq * LEVELS.astype(np.float32)[q])
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(np.where((sumq2 > 0) & (magnitude >= TINY), sumqx / sumq2, np.float32(0)))
    records["qs"] = join_halves(np.ascontiguousarray(q.T))
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq4_nl."""
    return f16_to_f32(records["d"])[:, None] * LEVELS.astype(np.float32)[split_halves(records["qs"])]


IQ4_NL = Quant(GGMLType.IQ4_NL, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0, convert_blocks=convert)
