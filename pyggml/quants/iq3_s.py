"""IQ3_S: 256 values in 110 bytes: runs of four from a table of 512, a scale for each eight runs. IQ3_XXS's signs are
seven bits."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.codebook import grid, nibbles, signed
from pyggml.quants.f16 import f16_to_f32

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        ("qs", "u1", (64,)),  # lower eight bits of the number of each run
        ("qh", "u1", (8,)),  # the upper one, of eight runs each
        ("signs", "u1", (32,)),
        ("scales", "u1", (4,)),  # of four bits
    ]
)
assert LAYOUT.itemsize == 110


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq3_s."""
    high = np.unpackbits(records["qh"], axis=1, bitorder="little")
    number = records["qs"].astype(np.uint16) | (high.astype(np.uint16) << np.uint16(8))
    scale = nibbles(records["scales"]).astype(np.float32) * np.float32(2) + np.float32(1)
    d = f16_to_f32(records["d"])[:, None] * scale
    values = d[:, :, None, None] * grid("IQ3_S")[number].reshape(-1, 8, 4, 8).astype(np.float32)
    return signed(values, records["signs"].reshape(-1, 8, 4)).reshape(-1, 256)


IQ3_S = Quant(GGMLType.IQ3_S, LAYOUT, None, dequantize, partner=GGMLType.Q8_K)
