"""IQ2_XXS: 256 values in 66 bytes: runs of eight from a table of 256, a scale for each four runs. IQ2_XS's table is
larger."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.codebook import SIGNS, grid, signed
from pyggml.quants.f16 import f16_to_f32

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        # for 32 values: four numbers of runs, a byte each; then signs of seven bits, and from bit 28 the scale
        ("qs", "<u4", (8, 2)),
    ]
)
assert LAYOUT.itemsize == 66


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq2_xxs."""
    qs = records["qs"]
    number = (qs[:, :, :1] >> np.array([0, 8, 16, 24], np.uint32)) & np.uint32(255)
    signs = SIGNS[(qs[:, :, 1:] >> np.array([0, 7, 14, 21], np.uint32)) & np.uint32(127)]
    scale = np.float32(0.5) + (qs[:, :, 1] >> np.uint32(28)).astype(np.float32)
    d = f16_to_f32(records["d"])[:, None] * scale * np.float32(0.25)
    values = d[:, :, None, None] * grid("IQ2_XXS")[number].astype(np.float32)
    return signed(values, signs).reshape(-1, 256)


IQ2_XXS = Quant(GGMLType.IQ2_XXS, LAYOUT, None, dequantize, partner=GGMLType.Q8_K)
