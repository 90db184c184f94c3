"""Q8_K: 256 values d * q in 292 bytes with their sums; the activations that meet super-blocks, never in files."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records
from pyggml.quants.rounding import largest_signed
from pyggml.quants.search import nearest_int

LAYOUT = np.dtype(
    [
        ("d", "<f4"),  # scale
        ("qs", "i1", (256,)),
        ("bsums", "<i2", (16,)),  # sums of 16 values each: what weights' minimums are multiplied by
    ]
)
assert LAYOUT.itemsize == 292


def quantize(values: Floats) -> Records:
    """The scale maps the value of largest magnitude to -127 (ggml-quants.c quantize_row_q8_K_ref)."""
    largest = largest_signed(values)
    inverse = np.float32(-127) / largest
    q = np.where(largest != 0, np.minimum(nearest_int(inverse * values), 127), 0).astype(np.int8)
    records = np.empty(len(values), LAYOUT)
    records["d"] = np.where(largest != 0, np.float32(1) / inverse, np.float32(0))[:, 0]
    records["qs"] = q
    records["bsums"] = q.reshape(-1, 16, 16).sum(axis=2, dtype=np.int16)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q8_K."""
    return records["d"].astype(np.float32)[:, None] * records["qs"].astype(np.float32)


Q8_K = Quant(GGMLType.Q8_K, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K)
