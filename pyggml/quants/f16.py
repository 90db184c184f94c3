"""F16: IEEE half precision, rounded to nearest even. Owns the conversion that the scales of other types use too."""

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records

LAYOUT = np.dtype([("h", "<u2")])
assert LAYOUT.itemsize == 2


def f32_to_f16(x: Floats) -> NDArray[np.uint16]:
    """Bits of the nearest half; every NaN becomes the quiet one of its sign (ggml-impl.h ggml_compute_fp32_to_fp16)."""
    bits = x.astype("<f2").view("<u2")
    return np.where(np.isnan(x), (bits & 0x8000) | 0x7E00, bits)


def f16_to_f32(h: NDArray[np.uint16]) -> Floats:
    """Exact; a signalling NaN becomes quiet and keeps its payload (ggml-impl.h ggml_compute_fp16_to_fp32)."""
    bits = np.ascontiguousarray(h, "<u2").view("<f2").astype(np.float32).view(np.uint32)
    return np.where((h & 0x7FFF) > 0x7C00, bits | np.uint32(0x00400000), bits).view(np.float32)


def quantize(values: Floats) -> Records:
    """float32 (n, 1) -> records (n,)"""
    return np.ascontiguousarray(f32_to_f16(values)).view(LAYOUT).reshape(-1)


def dequantize(records: Records) -> Floats:
    """records (n,) -> float32 (n, 1)"""
    return f16_to_f32(records["h"]).reshape(-1, 1)


F16 = Quant(GGMLType.F16, LAYOUT, quantize, dequantize, partner=GGMLType.F16)
