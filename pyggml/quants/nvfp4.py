"""NVFP4: 64 floats of four bits in 36 bytes, each 16 with a scale of eight bits. MXFP4's scales are powers of two."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.fp4 import LEVELS, UE4M3, greatest, nearest_level, to_ue4m3
from pyggml.quants.rounding import join_halves, split_halves

LAYOUT = np.dtype(
    [
        ("d", "u1", (4,)),  # scales
        ("qs", "u1", (32,)),  # each 8 bytes 16 values: j in the low half of byte j, j + 8 in the high half
    ]
)
assert LAYOUT.itemsize == 36


def quantize(values: Floats) -> Records:
    """The scale maps the largest magnitude to 6 (ggml-quants.c quantize_row_nvfp4_ref)."""
    x = values.reshape(-1, 16)
    d = to_ue4m3(greatest(x) / np.float32(6))
    records = np.empty(len(values), LAYOUT)
    records["d"] = d.reshape(-1, 4)
    records["qs"] = join_halves(nearest_level(x, UE4M3[d])).reshape(-1, 32)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_nvfp4."""
    levels: Floats = LEVELS.astype(np.float32)[split_halves(records["qs"].reshape(-1, 8))]
    values: Floats = levels * UE4M3[records["d"]].reshape(-1, 1)
    return values.reshape(-1, 64)


NVFP4 = Quant(GGMLType.NVFP4, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0)
