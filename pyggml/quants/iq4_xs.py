"""IQ4_XS: 256 values d * (sc - 32) * table[q] in 136 bytes, eight sub-blocks of 32. Knows IQ4_NL's levels, which it
shares."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Bytes, Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.iq4_nl import LEVELS, best_scale, nearest_level
from pyggml.quants.rounding import join_halves, largest_signed, reciprocal, split_halves
from pyggml.quants.search import columns, in_batches, nearest_int

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        ("scales_h", "<u2"),  # bits 4 and 5 of scale i from bit 2 i
        ("scales_l", "u1", (4,)),  # the lower four bits, two to a byte
        ("qs", "u1", (128,)),  # each 16 bytes 32 values: j in the low half of byte j, j + 16 in the high half
    ]
)
assert LAYOUT.itemsize == 136


def split_scales(records: Records) -> Bytes:
    """(blocks, 8) below 64."""
    packed = records["scales_l"]
    low: Bytes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=2).reshape(-1, 8)
    high = (records["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & np.uint16(3)
    return low | (high.astype(np.uint8) << np.uint8(4))


@in_batches
def quantize(values: Floats) -> Records:
    """ggml-quants.c quantize_iq4_xs. The values are divided by scales of d before its rounding to f16."""
    scale = best_scale(columns(values, 32)).reshape(-1, 8)
    d = -largest_signed(scale) / np.float32(32)
    whole = np.clip(nearest_int(reciprocal(d) * scale), -32, 31)
    by = reciprocal(d * whole.astype(np.float32))
    q = nearest_level(by[:, :, None] * values.reshape(-1, 8, 32))
    stored = (whole + 32).astype(np.uint16)
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)[:, 0]
    high = (stored >> 4) << np.arange(0, 16, 2, dtype=np.uint16)
    records["scales_h"] = np.bitwise_or.reduce(high, axis=1)
    records["scales_l"] = ((stored[:, ::2] & 15) | ((stored[:, 1::2] & 15) << 4)).astype(np.uint8)
    records["qs"] = join_halves(q.reshape(-1, 32)).reshape(-1, 128)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq4_xs."""
    whole = split_scales(records).astype(np.float32) - np.float32(32)
    d = f16_to_f32(records["d"])[:, None] * whole
    levels = LEVELS.astype(np.float32)[split_halves(records["qs"].reshape(-1, 16))]
    return (d[:, :, None] * levels.reshape(-1, 8, 32)).reshape(-1, 256)


IQ4_XS = Quant(GGMLType.IQ4_XS, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K)
