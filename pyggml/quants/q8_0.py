"""Q8_0: 32 values q * d in 34 bytes; weights, and the activations that meet types without a minimum."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import in_steps_of_127, largest_magnitude, low_byte, reciprocal, round_half_away, saturated

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("qs", "i1", (32,)),
    ]
)
assert LAYOUT.itemsize == 34


def quantize(values: Floats) -> Records:
    """The scale maps the largest magnitude to 127; rounded with the scale before its own rounding to f16
    (ggml-quants.c quantize_row_q8_0_ref)."""
    d = largest_magnitude(values) / np.float32(127)
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)[:, 0]
    records["qs"] = low_byte(round_half_away(values * reciprocal(d))).view(np.int8)
    return records


def convert(values: Floats) -> Records:
    """Multiplied by 127 over the largest magnitude, halves to even (ggml-cpu/arch/x86/quants.c quantize_row_q8_0)."""
    d, q = in_steps_of_127(values)
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)
    records["qs"] = saturated(q)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q8_0."""
    return records["qs"].astype(np.float32) * f16_to_f32(records["d"])[:, None]


Q8_0 = Quant(GGMLType.Q8_0, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0, convert_blocks=convert)
