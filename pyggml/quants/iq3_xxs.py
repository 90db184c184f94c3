"""IQ3_XXS: 256 values in 98 bytes: runs of four from a table of 256, a scale for each eight runs. IQ3_S's table is
larger."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.codebook import SIGNS, grid, signed
from pyggml.quants.f16 import f16_to_f32

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        ("qs", "u1", (64,)),  # number of each run
        ("signs", "<u4", (8,)),  # of 32 values: four times seven bits; the scale from bit 28
    ]
)
assert LAYOUT.itemsize == 98


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq3_xxs."""
    packed = records["signs"]
    signs = SIGNS[(packed[:, :, None] >> np.array([0, 7, 14, 21], np.uint32)) & np.uint32(127)]
    scale = np.float32(0.5) + (packed >> np.uint32(28)).astype(np.float32)
    d = f16_to_f32(records["d"])[:, None] * scale * np.float32(0.5)
    values = d[:, :, None, None] * grid("IQ3_XXS")[records["qs"]].reshape(-1, 8, 4, 8).astype(np.float32)
    return signed(values, signs).reshape(-1, 256)


IQ3_XXS = Quant(GGMLType.IQ3_XXS, LAYOUT, None, dequantize, partner=GGMLType.Q8_K)
