"""Q5_0: 32 values (q - 16) * d in 22 bytes, the fifth bits apart. Must not know Q5_1, which has a minimum."""

from typing import Any

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Floats, Quant, Records, VectorBlocks, field_offsets
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.rounding import (
    at_most,
    join_fifth_bits,
    join_halves,
    largest_signed,
    low_byte,
    reciprocal,
    split_fifth_bits,
    split_halves,
)

LAYOUT = np.dtype(
    [
        ("d", "<u2"),  # scale, f16
        ("qh", "<u4"),  # bit j: the fifth bit of value j
        ("qs", "u1", (16,)),  # value j in the low half of byte j, value j + 16 in the high half
    ]
)
assert LAYOUT.itemsize == 22


def quantize(values: Floats) -> Records:
    """The scale maps the value of largest magnitude to -16 (ggml-quants.c quantize_row_q5_0_ref)."""
    d = largest_signed(values) / np.float32(-16)
    q = at_most(31, low_byte(values * reciprocal(d) + np.float32(16.5)))
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)[:, 0]
    records["qh"] = join_fifth_bits(q)
    records["qs"] = join_halves(q & np.uint8(0x0F))
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_q5_0."""
    d = f16_to_f32(records["d"])[:, None]
    q = split_halves(records["qs"]) | split_fifth_bits(records["qh"])
    return (q.view(np.int8) - np.int8(16)).astype(np.float32) * d


def vector() -> VectorBlocks:
    from pyggml import simd
    from pyggml.jit import device

    def quants(blocks: int) -> Any:
        low = simd.nibbles(field_offsets(LAYOUT, "qs", blocks))
        high = simd.bits(field_offsets(LAYOUT, "qh", blocks), 16)

        @device
        def both(addr: Any) -> Any:
            return low(addr) | high(addr)

        return both

    def columns() -> Any:
        return simd.columns_of_nibbles(field_offsets(LAYOUT, "qs")[0], fifth=field_offsets(LAYOUT, "qh")[0])

    return VectorBlocks(quants, columns, d=field_offsets(LAYOUT, "d")[0], bias=16)


Q5_0 = Quant(GGMLType.Q5_0, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0, vector=vector)
