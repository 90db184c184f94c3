"""Blocks of 32 values that share a scale: their q for products, and their values as two vectors of f32 lanes, to the bit
as in quants/.

Owns how vector code reads these layouts; blocks_32_encode.py writes them. Imported by factories only (Numba).
"""

from pyggml import simd as v
from pyggml.jit import device, inline
from pyggml.kernels.cpu.formats.blocks_32_encode import ENCODERS
from pyggml.kernels.cpu.formats.forms import Functions, VectorBlocks
from pyggml.quants import iq4_nl, mxfp4, q4_0, q4_1, q5_0, q5_1, q8_0, q8_1
from pyggml.quants.base import field_offsets
from pyggml.quants.fp4 import LEVELS

U = v.U
_load_i8x16 = v.loader("i8", 16)


def _splat(value, elem="i32"):
    return v.constant(elem, [value] * 16)


def _offset(layout, field):
    return U(layout.fields[field][1])


# ---- values: half(0 or 1) -> f(block): values 0 to 15, or 16 to 31


def _nibbles(layout, half, middle=0):
    """-> f(block): the four-bit and, if the layout has `qh`, fifth bits of a half as i32 lanes, less `middle`."""
    at, fifths = _offset(layout, "qs"), "qh" in layout.fields
    high = _offset(layout, "qh") if fifths else U(0)
    low_bits, four, less = _splat(15), _splat(4), _splat(middle)
    number, fifth = v.constant("i32", [16 * half + i for i in range(16)]), _splat(1)

    @inline
    def unpack(block):
        packed = v.widen(v.load_u8x16(block + at))
        q = packed >> four() if half else packed & low_bits()
        if fifths:
            bits = v.broadcast_i32(block + high)
            q = q | (((bits >> number()) & fifth()) << four())
        return q - less()

    return unpack


def _scaled(layout, middle):
    def decoder(half):
        unpack, d_at = _nibbles(layout, half, middle), _offset(layout, "d")

        @inline
        def decode(block):
            return v.to_f32(unpack(block)) * v.splat_f32(v.f16_at(block + d_at))

        return decode

    return decoder


def _with_minimum(layout):
    def decoder(half):
        unpack, d_at, m_at = _nibbles(layout, half), _offset(layout, "d"), _offset(layout, "m")

        @inline
        def decode(block):
            x = v.to_f32(unpack(block)) * v.splat_f32(v.f16_at(block + d_at))
            return x + v.splat_f32(v.f16_at(block + m_at))

        return decode

    return decoder


def _bytes(layout):
    def decoder(half):
        d_at, at = _offset(layout, "d"), _offset(layout, "qs") + U(16 * half)

        @inline
        def decode(block):
            return v.to_f32(v.widen(_load_i8x16(block + at))) * v.splat_f32(v.f16_at(block + d_at))

        return decode

    return decoder


def _levels(layout, entries):
    """With an f16 scale, or an exponent where the layout has `e`."""

    def decoder(half):
        unpack, level = _nibbles(layout, half), v.table(entries)
        d_at, scale = (_offset(layout, "e"), v.e8m0_at) if "e" in layout.fields else (_offset(layout, "d"), v.f16_at)

        @v.device
        def decode(block):
            return v.to_f32(v.widen(level(v.low_u8(unpack(block))))) * v.splat_f32(scale(block + d_at))

        return decode

    return decoder


# ---- for products: () -> VectorBlocks


def _of_nibbles(layout, bias=0):
    """Of four bits and, where the layout has `qh`, a fifth; with a minimum where it has `m`."""
    fifths = "qh" in layout.fields

    def quants(blocks):
        low = v.nibbles(field_offsets(layout, "qs", blocks))
        if not fifths:
            return low
        high = v.bits(field_offsets(layout, "qh", blocks), 16)
        return device(lambda addr: low(addr) | high(addr))

    def vector():
        (at,) = field_offsets(layout, "qs")
        columns = v.columns_of_nibbles(at, fifth=field_offsets(layout, "qh")[0] if fifths else None)
        m = field_offsets(layout, "m")[0] if "m" in layout.fields else None
        return VectorBlocks(quants, columns, d=field_offsets(layout, "d")[0], m=m, bias=bias)

    return vector


def _of_bytes(layout):
    def vector():
        (at,), (d,) = field_offsets(layout, "qs"), field_offsets(layout, "d")
        quants = lambda blocks: v.bytes_at(field_offsets(layout, "qs", blocks))  # noqa: E731
        return VectorBlocks(quants, v.columns_of_bytes(at), d=d, signed=True)

    return vector


def _of_levels(layout, entries):
    def quants(blocks):
        index, level = v.nibbles(field_offsets(layout, "qs", blocks)), v.table(entries)
        return device(lambda addr: level(index(addr)))

    def vector():
        exponent = "e" in layout.fields
        (at,), (d,) = field_offsets(layout, "qs"), field_offsets(layout, "e" if exponent else "d")
        return VectorBlocks(quants, v.columns_of_nibbles(at, entries), d=d, signed=True, exponent=exponent)

    return vector


FUNCTIONS = {
    "Q4_0": Functions(vector=_of_nibbles(q4_0.LAYOUT, 8), half=_scaled(q4_0.LAYOUT, 8), encode_pair=ENCODERS["Q4_0"]),
    "Q4_1": Functions(vector=_of_nibbles(q4_1.LAYOUT), half=_with_minimum(q4_1.LAYOUT), encode_pair=ENCODERS["Q4_1"]),
    "Q5_0": Functions(vector=_of_nibbles(q5_0.LAYOUT, 16), half=_scaled(q5_0.LAYOUT, 16), encode_pair=ENCODERS["Q5_0"]),
    "Q5_1": Functions(vector=_of_nibbles(q5_1.LAYOUT), half=_with_minimum(q5_1.LAYOUT), encode_pair=ENCODERS["Q5_1"]),
    "Q8_0": Functions(vector=_of_bytes(q8_0.LAYOUT), half=_bytes(q8_0.LAYOUT), encode_pair=ENCODERS["Q8_0"]),
    "Q8_1": Functions(half=_bytes(q8_1.LAYOUT), encode_pair=ENCODERS["Q8_1"]),
    "IQ4_NL": Functions(
        vector=_of_levels(iq4_nl.LAYOUT, iq4_nl.LEVELS),
        half=_levels(iq4_nl.LAYOUT, iq4_nl.LEVELS),
        encode_pair=ENCODERS["IQ4_NL"],
    ),
    "MXFP4": Functions(
        vector=_of_levels(mxfp4.LAYOUT, LEVELS),
        half=_levels(mxfp4.LAYOUT, LEVELS),
        encode_pair=ENCODERS["MXFP4"],
    ),
}
