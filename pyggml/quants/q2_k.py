"""Q2_K: 256 values d * sc * q - dmin * m in 84 bytes, sixteen sub-blocks of 16. Q3_K has no minimums."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records, Searches
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.search import PLAIN, by_scale, columns, greatest, in_batches, nearest_int
from pyggml.quants.super_blocks import blocks_of, join_planes, split_planes

LAYOUT = np.dtype(
    [
        ("scales", "u1", (16,)),  # of each sub-block: scale in the low half, minimum in the high half
        ("qs", "u1", (64,)),  # 128 values in each 32 bytes: value 32 i + l in the bits from 2 i of byte l
        ("d", "<u2"),  # scale of the scales, f16
        ("dmin", "<u2"),  # scale of the minimums, f16
    ]
)
assert LAYOUT.itemsize == 84


def scale_of_each(records: Records) -> tuple[Floats, Floats]:
    """(blocks, 16) scales and minimums of the sub-blocks."""
    d, m = f16_to_f32(records["d"])[:, None], f16_to_f32(records["dmin"])[:, None]
    scales = records["scales"]
    return d * (scales & np.uint8(15)).astype(np.float32), m * (scales >> np.uint8(4)).astype(np.float32)


@in_batches
def quantize(values: Floats, search: Searches = PLAIN) -> Records:
    """ggml-quants.c quantize_row_q2_K_ref."""
    x = columns(values, 16)
    scale, minimum, q = search.scales_and_minimums(x, np.abs(x), 3, -0.5, 0.1, 15, absolute=True)
    scale, minimum = scale.reshape(-1, 16), minimum.reshape(-1, 16)
    records = np.zeros(len(values), LAYOUT)
    for field, wanted, shift in (("d", scale, 0), ("dmin", minimum, 4)):
        most = greatest(wanted)
        inverse = np.where(most > 0, np.float32(15) / most, np.float32(0))
        records["scales"] |= nearest_int(inverse[:, None] * wanted).astype(np.uint8) << np.uint8(shift)
        records[field] = f32_to_f16(most / np.float32(15))
    d, m = scale_of_each(records)
    records["qs"] = join_planes(blocks_of(by_scale(x, d.reshape(-1), q, 0, 3, m.reshape(-1))), 2, 4)
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q2_K."""
    d, m = scale_of_each(records)
    q = split_planes(records["qs"], 2).reshape(-1, 16, 16)
    return (d[:, :, None] * q.astype(np.float32) - m[:, :, None]).reshape(-1, 256)


Q2_K = Quant(GGMLType.Q2_K, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K, searches=True)
