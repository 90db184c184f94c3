"""Q5_1: 32 values q * d + m in 24 bytes, the fifth bits apart. Q5_0's values lie about zero."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import (
    join_fifth_bits,
    join_halves,
    least_and_greatest,
    low_byte,
    reciprocal,
    split_fifth_bits,
    split_halves,
)

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("m", "<u2"),  # minimum, f16
        ("qh", "<u4"),  # bit j: the fifth bit of value j
        ("qs", "u1", (16,)),  # value j in the low half of byte j, value j + 16 in the high half
    ]
)
assert LAYOUT.itemsize == 24


def quantize(values: Floats) -> Records:
    """Thirty-two steps from the least value to the greatest (ggml-quants.c quantize_row_q5_1_ref)."""
    least, greatest = least_and_greatest(values)
    d = (greatest - least) / np.float32(31)
    q = low_byte((values - least) * reciprocal(d) + np.float32(0.5))
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)[:, 0]
    records["m"] = f32_to_f16(least)[:, 0]
    records["qh"] = join_fifth_bits(q)
    records["qs"] = join_halves(q & np.uint8(0x0F))
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q5_1."""
    d = f16_to_f32(records["d"])[:, None]
    m = f16_to_f32(records["m"])[:, None]
    q = split_halves(records["qs"]) | split_fifth_bits(records["qh"])
    return q.astype(np.float32) * d + m


Q5_1 = Quant(GGMLType.Q5_1, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_1)
