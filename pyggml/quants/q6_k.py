"""Q6_K: 256 values d * sc * (q - 32) in 210 bytes, sixteen sub-blocks of 16. Q5_K has minimums."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records, Searches
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import largest_signed
from pyggml.quants.search import PLAIN, TINY, by_scale, columns, in_batches, nearest_int
from pyggml.quants.super_blocks import blocks_of

LAYOUT = np.dtype(
    [
        ("ql", "u1", (128,)),  # 128 values in each 64 bytes: the first 64 in the low halves
        ("qh", "u1", (64,)),  # 128 values in each 32 bytes: bits 4 and 5 of value 32 i + l from bit 2 i of byte l
        ("scales", "i1", (16,)),
        ("d", "<u2"),  # scale of the scales, f16
    ]
)
assert LAYOUT.itemsize == 210


def scale_of_each(records: Records) -> Floats:
    """(blocks, 16) scales of the sub-blocks."""
    return f16_to_f32(records["d"])[:, None] * records["scales"].astype(np.float32)


@in_batches
def quantize(values: Floats, search: Searches = PLAIN) -> Records:
    """ggml-quants.c quantize_row_q6_K_ref."""
    x = columns(values, 16)
    scale, q = search.scales(x, 32)
    scale = scale.reshape(-1, 16)
    most = largest_signed(scale)
    inverse = np.float32(-128) / most
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(np.float32(1) / inverse)[:, 0]
    records["scales"] = np.minimum(nearest_int(inverse * scale), 127).astype(np.int8)
    levels = blocks_of(by_scale(x, scale_of_each(records).reshape(-1), q, -32, 31)).reshape(-1, 2, 4, 32)
    low, high = levels & np.uint8(15), levels >> np.uint8(4)
    records["ql"] = (low[:, :, :2] | (low[:, :, 2:] << np.uint8(4))).reshape(-1, 128)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    records["qh"] = np.bitwise_or.reduce(high << shifts, axis=2).reshape(-1, 64)
    records[np.abs(most[:, 0]) < TINY] = np.zeros((), LAYOUT)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q6_K."""
    ql = records["ql"].reshape(-1, 2, 2, 32)
    low = np.concatenate([ql & np.uint8(15), ql >> np.uint8(4)], axis=2)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = (records["qh"].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)
    q = ((low | (high << np.uint8(4))).view(np.int8) - np.int8(32)).reshape(-1, 16, 16)
    values: Floats = scale_of_each(records)[:, :, None] * q.astype(np.float32)
    return values.reshape(-1, 256)


Q6_K = Quant(GGMLType.Q6_K, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K, searches=True)
