"""Q5_0: 32 values (q - 16) * d in 22 bytes, the fifth bits apart. Q5_1 has a minimum."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import (
    at_most,
    join_fifth_bits,
    join_halves,
    largest_signed,
    low_byte,
    reciprocal,
    split_fifth_bits,
    split_halves,
)

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("qh", "<u4"),  # bit j: the fifth bit of value j
        ("qs", "u1", (16,)),  # value j in the low half of byte j, value j + 16 in the high half
    ]
)
assert LAYOUT.itemsize == 22


def quantize(values: Floats) -> Records:
    """The scale maps the value of largest magnitude to -16 (ggml-quants.c quantize_row_q5_0_ref)."""
    d = largest_signed(values) / np.float32(-16)
    q = at_most(31, low_byte(values * reciprocal(d) + np.float32(16.5)))
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)[:, 0]
    records["qh"] = join_fifth_bits(q)
    records["qs"] = join_halves(q & np.uint8(0x0F))
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q5_0."""
    d = f16_to_f32(records["d"])[:, None]
    q = split_halves(records["qs"]) | split_fifth_bits(records["qh"])
    return (q.view(np.int8) - np.int8(16)).astype(np.float32) * d


Q5_0 = Quant(GGMLType.Q5_0, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0)
