"""MXFP4: 32 floats of four bits and an exponent that they share, in 17 bytes. NVFP4's scales have mantissas."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.fp4 import E8M0, LEVELS, greatest, nearest_level
from pyggml.quants.rounding import join_halves, low_byte, split_halves

LAYOUT = np.dtype(
    [
        ("e", "u1"),  # exponent
        ("qs", "u1", (16,)),  # value j in the low half of byte j, value j + 16 in the high half
    ]
)
assert LAYOUT.itemsize == 17


def quantize(values: Floats) -> Records:
    """ggml-quants.c quantize_row_mxfp4_ref."""
    most = greatest(values)
    power = np.log2(most, dtype=np.float64).astype(np.float32)
    records = np.empty(len(values), LAYOUT)
    e = np.where(most > 0, low_byte(np.floor(power) - np.float32(2) + np.float32(127)), np.uint8(0))
    records["e"] = e[:, 0]
    records["qs"] = join_halves(nearest_level(values, E8M0[e]))
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_mxfp4."""
    levels: Floats = LEVELS.astype(np.float32)[split_halves(records["qs"])]
    values: Floats = levels * E8M0[records["e"]][:, None]
    return values


MXFP4 = Quant(GGMLType.MXFP4, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0)
