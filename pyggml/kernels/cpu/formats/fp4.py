"""MXFP4 and NVFP4: four-bit floats with a scale of eight bits.

Owns how vector code reads and writes these layouts. Imported by factories only (Numba).
"""

import numpy as np

from pyggml import simd as v
from pyggml.jit import device
from pyggml.kernels.cpu.formats.byte_blocks import HALF, SPARE, ZERO, at, greatest, put_byte
from pyggml.kernels.cpu.formats.forms import Functions
from pyggml.quants import mxfp4, nvfp4
from pyggml.quants.fp4 import E8M0, LEVELS, UE4M3
from pyggml.simd.constants import memory

U = v.U


def _mxfp4():
    e_at, q_at = (at(mxfp4.LAYOUT, field) for field in ("e", "qs"))
    powers = memory(np.append(E8M0, np.zeros(256 - len(E8M0), np.float32)))
    level, low, four = v.table(LEVELS), v.constant("i32", [15] * 16), v.constant("i32", [4] * 16)

    @v.device
    def block(x, to):
        d = v.splat_f32(v.f32_at(powers() + U(4) * U(v.u8_at(x + e_at))))
        q = v.widen(v.load_u8x16(x + q_at))
        v.store(to, v.to_f32(v.widen(level(v.low_u8(q & low())))) * d)
        v.store(to + U(64), v.to_f32(v.widen(level(v.low_u8(q >> four())))) * d)

    return block


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


def _first_of_each_power():
    """For K from -149 to 128 the least float whose logarithm, rounded to a float, is at least K."""
    powers = np.arange(-149, 129)
    with np.errstate(all="ignore"):
        first = np.ldexp(np.float64(1), powers).astype(np.float32)  # the last one is infinite
        for _ in range(64):
            lower = np.nextafter(first, np.float32(0))
            still = (lower > 0) & (np.log2(lower, dtype=np.float64).astype(np.float32) >= powers)
            first = np.where(still, lower, first)
    return first


def _mxfp4_encode():
    e_at, q_at = at(mxfp4.LAYOUT, "e"), at(mxfp4.LAYOUT, "qs")
    scales, first = memory(np.append(E8M0, np.zeros(1, np.float32))), memory(_first_of_each_power())
    infinity = np.float32(np.inf)

    @device
    def exponent(most):
        if not ZERO < most < infinity:
            return np.int64(0)
        power = np.int64(-149)
        while power < 128 and most >= v.f32_at(first() + U(4 * (power + 150))):
            power += 1
        return (power + 125) & 255

    @device
    def encode(block, room):
        e = exponent(greatest(room, 32))
        d = v.f32_at(scales() + U(4 * e))
        put_byte(block + e_at, e)
        for i in range(16):
            low, high = v.f32_at(room + U(4 * i)), v.f32_at(room + U(64 + 4 * i))
            put_byte(block + q_at + U(i), _nearest(low, d) | _nearest(high, d) << 4)

    return encode


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
    "MXFP4": Functions(dequantise=_mxfp4, encode=_mxfp4_encode),
    "NVFP4": Functions(dequantise=_nvfp4, encode=_nvfp4_encode),
}
