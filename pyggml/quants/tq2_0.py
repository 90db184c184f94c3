"""TQ2_0: 256 values -d, 0 or d in 66 bytes, two bits each. TQ1_0 packs five to a byte."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.ternary import trits

LAYOUT = np.dtype(
    [
        ("qs", "u1", (64,)),  # 128 values in each 32 bytes: value 32 i + j in byte j from bit 2 i
        ("d", "<u2"),  # scale, f16
    ]
)
assert LAYOUT.itemsize == 66

_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)[:, None]


def quantize(values: Floats) -> Records:
    """ggml-quants.c quantize_row_tq2_0_ref."""
    d, q = trits(values)
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)
    packed = np.bitwise_or.reduce((q & np.uint8(3)).reshape(-1, 2, 4, 32) << _SHIFTS, axis=2)
    records["qs"] = packed.reshape(-1, 64)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_tq2_0."""
    q = (records["qs"].reshape(-1, 2, 1, 32) >> _SHIFTS) & np.uint8(3)
    values: Floats = (q.reshape(-1, 256).astype(np.float32) - np.float32(1)) * f16_to_f32(records["d"])[:, None]
    return values


TQ2_0 = Quant(GGMLType.TQ2_0, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K)
