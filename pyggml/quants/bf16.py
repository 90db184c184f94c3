"""BF16: the upper half of a float32, rounded to nearest even. F16's exponent is shorter."""

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records

LAYOUT = np.dtype([("b", "<u2")])
assert LAYOUT.itemsize == 2


def f32_to_bf16(x: Floats) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16; a NaN keeps its upper payload and becomes quiet (ggml_compute_fp32_to_bf16)."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    upper = bits >> np.uint32(16)
    rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), upper | np.uint32(64), rounded).astype("<u2")


def bf16_to_f32(b: NDArray[np.uint16]) -> Floats:
    """Exact (ggml-impl.h ggml_compute_bf16_to_fp32)."""
    return (b.astype(np.uint32) << np.uint32(16)).view(np.float32)


def quantize(values: Floats) -> Records:
    """float32 (n, 1) -> records (n,)"""
    return f32_to_bf16(values).view(LAYOUT).reshape(-1)


def dequantize(records: Records) -> Floats:
    """records (n,) -> float32 (n, 1)"""
    return bf16_to_f32(records["b"]).reshape(-1, 1)


BF16 = Quant(GGMLType.BF16, LAYOUT, quantize, dequantize, partner=GGMLType.BF16)
