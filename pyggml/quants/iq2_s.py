"""IQ2_S: 256 values in 82 bytes: runs of eight from a table of 1024, a scale for each two. IQ2_XS's signs are seven
bits."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.codebook import grid, nibbles, signed
from pyggml.quants.f16 import f16_to_f32

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        ("qs", "u1", (32,)),  # lower eight bits of the number of each run
        ("signs", "u1", (32,)),
        ("qh", "u1", (8,)),  # upper two, of four runs each
        ("scales", "u1", (8,)),  # of four bits
    ]
)
assert LAYOUT.itemsize == 82


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq2_s."""
    high = (records["qh"][:, :, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & np.uint8(3)
    number = records["qs"].astype(np.uint16) | (high.reshape(-1, 32).astype(np.uint16) << np.uint16(8))
    scale = np.float32(0.5) + nibbles(records["scales"]).astype(np.float32)
    d = f16_to_f32(records["d"])[:, None] * scale * np.float32(0.25)
    values = np.repeat(d, 2, axis=1)[:, :, None] * grid("IQ2_S")[number].astype(np.float32)
    return signed(values, records["signs"]).reshape(-1, 256)


IQ2_S = Quant(GGMLType.IQ2_S, LAYOUT, None, dequantize, partner=GGMLType.Q8_K)
