"""NVFP4: four-bit floats, each 16 with a scale of eight bits.

Owns how vector code reads and writes this layout. Imported by factories only (Numba).
"""

import numpy as np

from pyggml import simd as v
from pyggml.jit import device
from pyggml.kernels.cpu.formats.byte_blocks import HALF, SPARE, ZERO, at, greatest, put_byte
from pyggml.kernels.cpu.formats.forms import Functions
from pyggml.quants import nvfp4
from pyggml.quants.fp4 import LEVELS, UE4M3
from pyggml.simd.constants import memory

U = v.U


def _nvfp4():
    d_at, q_at = (at(nvfp4.LAYOUT, field) for field in ("d", "qs"))
    scales, level = memory(UE4M3), v.table(LEVELS)
    load, twice = v.loader("u8", 8), v.shuffler([*range(8), *range(8)])
    down, low = v.constant("i32", [0] * 8 + [4] * 8), v.constant("i32", [15] * 16)

    @v.device
    def block(x, to):
        for i in range(4):
            d = v.splat_f32(v.f32_at(scales() + U(4) * U(v.u8_at(x + d_at + U(i)))))
            q = v.widen(twice(load(x + q_at + U(8 * i)))) >> down()
            v.store(to + U(64 * i), v.to_f32(v.widen(level(v.low_u8(q & low())))) * d)

    return block


_levels = memory(LEVELS.astype(np.float32))


@device
def _nearest(x, d):
    """The number of the first level nearest to x / d."""
    best, least = np.int64(0), abs(v.f32_at(_levels()) * d - x)
    for i in range(1, 16):
        error = abs(v.f32_at(_levels() + U(4 * i)) * d - x)
        if error < least:
            best, least = np.int64(i), error
    return best


def _nvfp4_encode():
    d_at, q_at = at(nvfp4.LAYOUT, "d"), at(nvfp4.LAYOUT, "qs")
    scales, most_of_all = memory(UE4M3), np.float32(448)

    @device
    def number(x, spare):
        """ggml-impl.h ggml_fp32_to_ue4m3."""
        if not x > ZERO:
            return np.int64(0)
        x = min(x, most_of_all)
        v.put_f32(spare, x)
        bits = np.int64(v.i32_at(spare))
        exponent = (bits >> 23) - 120
        if exponent <= 0:
            return min(np.int64(x * np.float32(512) + HALF), np.int64(7))
        rounded = (exponent << 3) + ((bits >> 20) & 7) + ((bits >> 19) & 1)
        return min(rounded, np.int64(0x7E)) if rounded < 120 else np.int64(0x7E)

    @device
    def encode(block, room):
        for part in range(4):
            x = room + U(64 * part)
            u = number(greatest(x, 16) / np.float32(6), room + U(SPARE))
            d = v.f32_at(scales() + U(4 * u))
            put_byte(block + d_at + U(part), u)
            for i in range(8):
                low, high = v.f32_at(x + U(4 * i)), v.f32_at(x + U(32 + 4 * i))
                put_byte(block + q_at + U(8 * part + i), _nearest(low, d) | _nearest(high, d) << 4)

    return encode


FUNCTIONS = {
    "NVFP4": Functions(dequantise=_nvfp4, encode=_nvfp4_encode),
}
