"""Q4_0: 32 values (q - 8) * d in 18 bytes. Q4_1 has a minimum instead of the 8."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import at_most, join_halves, largest_signed, low_byte, reciprocal, split_halves

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("qs", "u1", (16,)),  # value j in the low half of byte j, value j + 16 in the high half
    ]
)
assert LAYOUT.itemsize == 18


def quantize(values: Floats) -> Records:
    """The scale maps the value of largest magnitude to -8 (ggml-quants.c quantize_row_q4_0_ref)."""
    d = largest_signed(values) / np.float32(-8)
    q = at_most(15, low_byte(values * reciprocal(d) + np.float32(8.5)))
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)[:, 0]
    records["qs"] = join_halves(q)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q4_0."""
    d = f16_to_f32(records["d"])[:, None]
    return (split_halves(records["qs"]).view(np.int8) - np.int8(8)).astype(np.float32) * d


Q4_0 = Quant(GGMLType.Q4_0, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0)
