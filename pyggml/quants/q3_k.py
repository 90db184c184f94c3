"""Q3_K: 256 values d * (sc - 32) * (q - 4) in 110 bytes, sixteen sub-blocks of 16. Q2_K has minimums."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Bytes, Floats, Quant, Records, Searches
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import largest_signed
from pyggml.quants.search import PLAIN, by_scale, columns, in_batches, nearest_int
from pyggml.quants.super_blocks import blocks_of, join_planes, split_planes

LAYOUT = np.dtype(
    [
        ("hmask", "u1", (32,)),  # bit i of byte l: the third bit of value 32 i + l
        ("qs", "u1", (64,)),  # 128 values in each 32 bytes: value 32 i + l in the bits from 2 i of byte l
        ("scales", "u1", (12,)),  # sixteen of 6 bits: low halves of 8 bytes, high halves, then two bits in each of 4
        ("d", "<u2"),  # scale of the scales, f16
    ]
)
assert LAYOUT.itemsize == 110


def join_scales(scales: Bytes) -> Bytes:
    """(n, 16) below 64 -> (n, 12): bytes 8 to 11 have the upper two bits of scale 4 i + j in those from 2 i of byte j."""
    low, high = scales & np.uint8(15), (scales >> np.uint8(4)).reshape(-1, 4, 4)
    upper = high[:, 0] | (high[:, 1] << np.uint8(2)) | (high[:, 2] << np.uint8(4)) | (high[:, 3] << np.uint8(6))
    return np.concatenate([low[:, :8] | (low[:, 8:] << np.uint8(4)), upper], axis=1)


def split_scales(packed: Bytes) -> Bytes:
    """(blocks, 12) bytes -> (blocks, 16) numbers of six bits."""
    low: Bytes = np.concatenate([packed[:, :8] & np.uint8(15), packed[:, :8] >> np.uint8(4)], axis=1)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high: Bytes = (packed[:, None, 8:] >> shifts) & np.uint8(3)
    return low | (high.reshape(-1, 16) << np.uint8(4))


def scale_of_each(records: Records) -> Floats:
    """(blocks, 16) scales of the sub-blocks."""
    whole = split_scales(records["scales"]).astype(np.float32) - np.float32(32)
    return f16_to_f32(records["d"])[:, None] * whole


@in_batches
def quantize(values: Floats, search: Searches = PLAIN) -> Records:
    """ggml-quants.c quantize_row_q3_K_ref."""
    x = columns(values, 16)
    scale, q = search.scales_by_refinement(x, 4)
    scale = scale.reshape(-1, 16)
    most = largest_signed(scale)
    inverse = np.float32(-32) / most
    whole = np.clip(nearest_int(inverse * scale).astype(np.int8), np.int8(-32), np.int8(31)) + np.int8(32)
    records = np.empty(len(values), LAYOUT)
    records["scales"] = np.where(most != 0, join_scales(whole.view(np.uint8)), np.uint8(0))
    records["d"] = f32_to_f16(np.where(most != 0, np.float32(1) / inverse, np.float32(0)))[:, 0]
    levels = blocks_of(by_scale(x, scale_of_each(records).reshape(-1), q, -4, 3))
    records["hmask"] = join_planes(levels >> np.uint8(2), 1, 8)
    records["qs"] = join_planes(levels & np.uint8(3), 2, 4)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q3_K."""
    q = split_planes(records["qs"], 2) | (split_planes(records["hmask"], 1) << np.uint8(2))
    whole = (q.view(np.int8) - np.int8(4)).astype(np.float32).reshape(-1, 16, 16)
    return (scale_of_each(records)[:, :, None] * whole).reshape(-1, 256)


Q3_K = Quant(GGMLType.Q3_K, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K, searches=True)
