"""Q8_1: Q8_0 with the sum of its values, 36 bytes; the activations that meet types with a minimum, never in files."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import in_steps_of_127, largest_magnitude, low_byte, reciprocal, round_half_away, saturated

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("s", "<u2"),  # scale * sum of qs, f16: what a weight's minimum is multiplied by
        ("qs", "i1", (32,)),
    ]
)
assert LAYOUT.itemsize == 36


def quantize(values: Floats) -> Records:
    """The sum takes the scale before its rounding to f16 (ggml-quants.c quantize_row_q8_1_ref)."""
    d = largest_magnitude(values) / np.float32(127)
    q = low_byte(round_half_away(values * reciprocal(d))).view(np.int8)
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)[:, 0]
    records["s"] = f32_to_f16(q.sum(axis=1, dtype=np.int32).astype(np.float32) * d[:, 0])
    records["qs"] = q
    return records


def convert(values: Floats) -> Records:
    """As Q8_0's; the sum is that of the numbers before they are saturated (ggml-cpu/arch/x86/quants.c quantize_row_q8_1)."""
    d, q = in_steps_of_127(values)
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)
    records["s"] = f32_to_f16(d * q.sum(axis=1, dtype=np.int32).astype(np.float32))
    records["qs"] = saturated(q)
    return records


def dequantize(records: Records) -> Floats:
    """q * d, as in Q8_0; ggml has no function for it."""
    return records["qs"].astype(np.float32) * f16_to_f32(records["d"])[:, None]


Q8_1 = Quant(GGMLType.Q8_1, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_1, convert_blocks=convert)
