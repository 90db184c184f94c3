"""IQ1_M: 256 values in 56 bytes: runs of eight from IQ1_S's table, each with its shift, a scale for each two."""

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.codebook import grid, nibbles
from pyggml.quants.f16 import f16_to_f32
from pyggml.quants.iq1_s import SHIFT

LAYOUT = np.dtype(
    [
        ("qs", "u1", (32,)),  # lower eight bits of the number of each run
        ("qh", "u1", (16,)),  # of two runs, four bits each: the upper three, and the shift's sign
        ("scales", "<u2", (4,)),  # four of three bits, and from bit 12 four bits of the f16 scale of the scales
    ]
)
assert LAYOUT.itemsize == 56


def scale_of_scales(records: Records) -> NDArray[np.uint16]:
    """(blocks,) f16 bits."""
    parts = (records["scales"] >> np.uint16(12)) << np.arange(0, 16, 4, dtype=np.uint16)
    joined: NDArray[np.uint16] = np.bitwise_or.reduce(parts, axis=1)
    return joined


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_iq1_m."""
    packed = records["scales"]
    d = f16_to_f32(scale_of_scales(records))[:, None]
    scale = ((packed[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16)) & np.uint16(7)).reshape(-1, 16)
    d = np.repeat(d * (scale.astype(np.float32) * np.float32(2) + np.float32(1)), 2, axis=1)
    high = nibbles(records["qh"])
    number = records["qs"].astype(np.uint16) | ((high & np.uint8(7)).astype(np.uint16) << np.uint16(8))
    shift = np.where(high & np.uint8(8), -SHIFT, SHIFT)[:, :, None]
    return (d[:, :, None] * (grid("IQ1_S")[number].astype(np.float32) + shift)).reshape(-1, 256)


IQ1_M = Quant(GGMLType.IQ1_M, LAYOUT, None, dequantize, partner=GGMLType.Q8_K)
