"""Q2_0: 64 values d * (q - 1) in 18 bytes, two bits each. Q2_K's runs have scales of their own."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import round_half_away

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("qs", "u1", (16,)),  # values 4 j to 4 j + 3 in byte j, the first in its lowest bits
    ]
)
assert LAYOUT.itemsize == 18

_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)


def quantize(values: Floats) -> Records:
    """The scale is the largest magnitude, so that ggml itself never makes a 3 (ggml-quants.c quantize_row_q2_0_ref)."""
    d = np.where(np.isnan(values), np.float32(0), np.abs(values)).max(axis=1)
    by = np.where(d > 0, np.float32(1) / d, np.float32(0))
    x = round_half_away(values * by[:, None])
    q = np.clip(np.where(np.abs(x) < 2**31, x, np.float32(-2)) + 1, 0, 3).astype(np.uint8)
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)
    records["qs"] = np.bitwise_or.reduce(q.reshape(-1, 16, 4) << _SHIFTS, axis=2)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q2_0."""
    q = ((records["qs"][:, :, None] >> _SHIFTS) & np.uint8(3)).reshape(-1, 64).astype(np.float32)
    values: Floats = (q - np.float32(1)) * f16_to_f32(records["d"])[:, None]
    return values


Q2_0 = Quant(GGMLType.Q2_0, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0)
