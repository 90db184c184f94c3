"""Q4_1: 32 values q * d + m in 20 bytes. Q4_0's values lie about zero."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import at_most, join_halves, least_and_greatest, low_byte, reciprocal, split_halves

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("m", "<u2"),  # minimum, f16
        ("qs", "u1", (16,)),  # value j in the low half of byte j, value j + 16 in the high half
    ]
)
assert LAYOUT.itemsize == 20


def quantize(values: Floats) -> Records:
    """Sixteen steps from the least value to the greatest (ggml-quants.c quantize_row_q4_1_ref)."""
    least, greatest = least_and_greatest(values)
    d = (greatest - least) / np.float32(15)
    q = at_most(15, low_byte((values - least) * reciprocal(d) + np.float32(0.5)))
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)[:, 0]
    records["m"] = f32_to_f16(least)[:, 0]
    records["qs"] = join_halves(q)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q4_1."""
    d = f16_to_f32(records["d"])[:, None]
    m = f16_to_f32(records["m"])[:, None]
    return split_halves(records["qs"]).astype(np.float32) * d + m


Q4_1 = Quant(GGMLType.Q4_1, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_1)
