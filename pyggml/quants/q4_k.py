"""Q4_K: 256 values d * sc * q - dmin * m in 144 bytes, eight sub-blocks of 32. Q5_K is one bit richer."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Bytes, Floats, Quant, Records, Searches
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.search import PLAIN, by_scale, columns, greatest, in_batches, nearest_int, total
from pyggml.quants.super_blocks import (
    blocks_of,
    join_planes,
    join_scales_and_minimums,
    split_planes,
    split_scales_and_minimums,
)

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        ("dmin", "<u2"),  # scale of the minimums, f16
        ("scales", "u1", (12,)),  # eight scales and eight minimums of 6 bits
        ("qs", "u1", (128,)),  # 64 values in each 32 bytes: the first 32 in the low halves
    ]
)
assert LAYOUT.itemsize == 144


def scaled(values: Floats, records: Records, nmax: int, rmin: float, steps: int, search: Searches) -> Bytes:
    """Fills d, dmin and scales of the records; -> q (blocks, 256) in 0 ... nmax (quantize_row_q4_K_ref, q5_K)."""
    x = columns(values, 32)
    weights = np.sqrt(total(x * x) / np.float32(32)) + np.abs(x)
    scale, minimum, q = search.scales_and_minimums(x, weights, nmax, rmin, 0.1, steps, absolute=False)
    scale, minimum = scale.reshape(-1, 8), minimum.reshape(-1, 8)
    parts = []
    for field, wanted in (("d", scale), ("dmin", minimum)):
        most = greatest(wanted)
        inverse = np.where(most > 0, np.float32(63) / most, np.float32(0))
        parts.append(np.minimum(nearest_int(inverse[:, None] * wanted).astype(np.uint8), np.uint8(63)))
        records[field] = f32_to_f16(most / np.float32(63))
    records["scales"] = join_scales_and_minimums(*parts)
    d, m = scale_of_each(records)
    return blocks_of(by_scale(x, d.reshape(-1), q, 0, nmax, m.reshape(-1)))


def scale_of_each(records: Records) -> tuple[Floats, Floats]:
    """(blocks, 8) scales and minimums of the sub-blocks."""
    scales, minimums = split_scales_and_minimums(records["scales"])
    d, m = f16_to_f32(records["d"])[:, None], f16_to_f32(records["dmin"])[:, None]
    return d * scales.astype(np.float32), m * minimums.astype(np.float32)


def with_scales(records: Records, q: Bytes) -> Floats:
    """(blocks, 256) values of the q, which lie in 0 ... nmax."""
    d, m = scale_of_each(records)
    return (d[:, :, None] * q.reshape(-1, 8, 32).astype(np.float32) - m[:, :, None]).reshape(-1, 256)


@in_batches
def quantize(values: Floats, search: Searches = PLAIN) -> Records:
    """ggml-quants.c quantize_row_q4_K_ref."""
    records = np.empty(len(values), LAYOUT)
    records["qs"] = join_planes(scaled(values, records, 15, -1.0, 20, search), 4, 2)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q4_K."""
    return with_scales(records, split_planes(records["qs"], 4))


Q4_K = Quant(GGMLType.Q4_K, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K, searches=True)
