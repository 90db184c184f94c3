"""F32: a float32. Must not round."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records

LAYOUT = np.dtype([("x", "<f4")])
assert LAYOUT.itemsize == 4


def quantize(values: Floats) -> Records:
    """float32 (n, 1) -> records (n,)"""
    return np.ascontiguousarray(values).view(LAYOUT).reshape(-1)


def dequantize(records: Records) -> Floats:
    """records (n,) -> float32 (n, 1)"""
    return records["x"].astype(np.float32).reshape(-1, 1)


F32 = Quant(GGMLType.F32, LAYOUT, quantize, dequantize, partner=GGMLType.F32)
