"""IQ1_S: 256 values in 50 bytes: runs of eight from a table of 2048 with -1, 0 and 1, a scale and a shift for each
four. IQ1_M's runs have shifts of their own."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.codebook import grid
from pyggml.quants.f16 import f16_to_f32

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        ("qs", "u1", (32,)),  # lower eight bits of the number of each run
        ("qh", "<u2", (8,)),  # of four runs: the upper three bits of each, the scale from bit 12, the shift's sign
    ]
)
assert LAYOUT.itemsize == 50


SHIFT = np.float32(0.125)


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq1_s."""
    qh = records["qh"]
    high = (qh[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16)) & np.uint16(7)
    number = records["qs"].reshape(-1, 8, 4).astype(np.uint16) | (high << np.uint16(8))
    scale = ((qh >> np.uint16(12)) & np.uint16(7)).astype(np.float32) * np.float32(2) + np.float32(1)
    d = f16_to_f32(records["d"])[:, None] * scale
    shift = np.where(qh & np.uint16(0x8000), -SHIFT, SHIFT)[:, :, None, None]
    return (d[:, :, None, None] * (grid("IQ1_S")[number].astype(np.float32) + shift)).reshape(-1, 256)


IQ1_S = Quant(GGMLType.IQ1_S, LAYOUT, None, dequantize, partner=GGMLType.Q8_K)
