"""IQ2_XS: 256 values in 74 bytes: runs of eight from a table of 512, a scale for each two. IQ2_S has a byte of signs
a run."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.codebook import SIGNS, grid, nibbles, signed
from pyggml.quants.f16 import f16_to_f32

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        ("qs", "<u2", (32,)),  # number of a run, and from bit 9 its signs
        ("scales", "u1", (8,)),  # of four bits
    ]
)
assert LAYOUT.itemsize == 74


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq2_xs."""
    qs = records["qs"]
    scale = np.float32(0.5) + nibbles(records["scales"]).astype(np.float32)
    d = f16_to_f32(records["d"])[:, None] * scale * np.float32(0.25)
    values = np.repeat(d, 2, axis=1)[:, :, None] * grid("IQ2_XS")[qs & np.uint16(511)].astype(np.float32)
    return signed(values, SIGNS[qs >> np.uint16(9)]).reshape(-1, 256)


IQ2_XS = Quant(GGMLType.IQ2_XS, LAYOUT, None, dequantize, partner=GGMLType.Q8_K)
