"""Q5_K: 256 values d * sc * q - dmin * m in 176 bytes, the fifth bits apart. Knows Q4_K's scales, which it shares.
Q6_K has no minimums."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records, Searches
from pyggml.quants.q4_k import scaled, with_scales
from pyggml.quants.search import PLAIN, in_batches
from pyggml.quants.super_blocks import join_planes, split_planes

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale of the scales, f16
        ("dmin", "<u2"),  # scale of the minimums, f16
        ("scales", "u1", (12,)),  # eight scales and eight minimums of 6 bits
        ("qh", "u1", (32,)),  # bit i of byte l: the fifth bit of value 32 i + l
        ("qs", "u1", (128,)),  # 64 values in each 32 bytes: the first 32 in the low halves
    ]
)
assert LAYOUT.itemsize == 176


@in_batches
def quantize(values: Floats, search: Searches = PLAIN) -> Records:
    """ggml-quants.c quantize_row_q5_K_ref."""
    records = np.empty(len(values), LAYOUT)
    q = scaled(values, records, 31, -0.5, 15, search)
    records["qs"] = join_planes(q & np.uint8(15), 4, 2)
    records["qh"] = join_planes(q >> np.uint8(4), 1, 8)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q5_K."""
    return with_scales(records, split_planes(records["qs"], 4) | (split_planes(records["qh"], 1) << np.uint8(4)))


Q5_K = Quant(GGMLType.Q5_K, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K, searches=True)
