"""TQ1_0: 256 values -d, 0 or d in 54 bytes, five to a byte. TQ2_0 takes two bits each."""

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.quants.base import Bytes, Floats, Quant, Records
from pyggml.quants.f16 import f16_to_f32, f32_to_f16
from pyggml.quants.ternary import trits

LAYOUT = np.dtype(
    [
        # a byte is the number 0.abcde in base 3, times 256: values 32 i + j (i < 5) in byte j, then 160 + 16 i + j
        ("qs", "u1", (48,)),
        ("qh", "u1", (4,)),  # of four: values 240 + 4 i + j in byte j
        ("d", "<u2"),  # scale, f16
    ]
)
assert LAYOUT.itemsize == 54

POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _pack(q: Bytes) -> Bytes:
    """(n, trits, bytes) -> (n, bytes)."""
    total = np.zeros((q.shape[0], q.shape[2]), np.uint8)
    for i in range(5):
        total = total * np.uint8(3) + (q[:, i] if i < q.shape[1] else np.uint8(0))
    return ((total.astype(np.int32) * 256 + 242) // 243).astype(np.uint8)


def _unpack(packed: Bytes, count: int) -> Bytes:
    """(n, bytes) -> (n, count x bytes): each byte's digits in order."""
    shifted = packed[:, None, :] * POWERS[:count, None]  # the digits before the point are lost
    digits: Bytes = ((shifted.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)).astype(np.uint8)
    return digits.reshape(len(packed), count * packed.shape[1])


def quantize(values: Floats) -> Records:
    """ggml-quants.c quantize_row_tq1_0_ref."""
    d, q = trits(values)
    records = np.empty(len(values), LAYOUT)
    records["d"] = f32_to_f16(d)
    records["qs"][:, :32] = _pack(q[:, :160].reshape(-1, 5, 32))
    records["qs"][:, 32:] = _pack(q[:, 160:240].reshape(-1, 5, 16))
    records["qh"] = _pack(q[:, 240:].reshape(-1, 4, 4))
    return records


def dequantize(records: Records) -> Floats:
    """ggml-quants.c dequantize_row_tq1_0."""
    qs, qh = records["qs"], records["qh"]
    q = np.concatenate([_unpack(qs[:, :32], 5), _unpack(qs[:, 32:], 5), _unpack(qh, 4)], axis=1)
    values: Floats = (q.astype(np.float32) - np.float32(1)) * f16_to_f32(records["d"])[:, None]
    return values


TQ1_0 = Quant(GGMLType.TQ1_0, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_K)
