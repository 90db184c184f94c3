"""Q1_0: 128 values d or -d in 18 bytes, a bit each. Q2_0 has a zero."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("qs", "u1", (16,)),  # bit j % 8 of byte j / 8: value j is not negative
    ]
)
assert LAYOUT.itemsize == 18


def quantize(values: Floats) -> Records:
    """The scale is the mean magnitude (ggml-quants.c quantize_row_q1_0_ref)."""
    records = np.empty(len(values), LAYOUT)
    total: Floats = np.add.accumulate(np.abs(values), axis=1, dtype=np.float32)[:, -1]  # one after the other, as in C
    records["d"] = f32_to_f16(total / np.float32(128))
    records["qs"] = np.packbits(values >= 0, axis=1, bitorder="little")
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q1_0."""
    d = f16_to_f32(records["d"])[:, None]
    return np.where(np.unpackbits(records["qs"], axis=1, bitorder="little") == 1, d, -d)


Q1_0 = Quant(GGMLType.Q1_0, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0)
