"""K quants and IQ4_XS: super-blocks of 256 values whose runs have scales, as vectors: their q, 64 at a time, and the scales
and minimums of their runs.

Owns how vector code reads these layouts a row at a time; k_quants_columns.py reads 16 rows, k_quants_encode.py writes.
Imported by factories only (Numba).
"""

from pyggml import simd as v
from pyggml.jit import device
from pyggml.kernels.cpu.formats.forms import Functions, SuperBlocks
from pyggml.kernels.cpu.formats.k_quants_columns import COLUMNS
from pyggml.kernels.cpu.formats.k_quants_encode import ENCODERS
from pyggml.kernels.cpu.formats.super_blocks import bits_of, every_byte, half_at, lanes, shifted, twice
from pyggml.quants import iq4_nl, iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k

U = v.U
_load_16, _load_32, _load_64 = v.load_u8x16, v.load_u8x32, v.load_u8
_load_i8x16 = v.loader("i8", 16)


def _at(layout, field):
    return layout.fields[field][1]


_runs_twice = v.shuffler([*range(16), *range(16), *range(16, 32), *range(16, 32)])


def _either(x, y):
    return device(lambda addr: x(addr) | y(addr))


# ---- Q4_K, Q5_K: d, dmin, then eight scales and eight minimums of 6 bits in 12 bytes


def _scales_and_minimums():
    low = lanes(
        [4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15],
        [0] * 12 + [4] * 4,
        [63] * 4 + [15] * 4 + [63] * 4 + [15] * 4,
    )
    high = lanes([4, 5, 6, 7] * 2 + [8, 9, 10, 11] * 2, [2] * 16, ([0] * 4 + [48] * 4) * 2)
    each = v.shuffler([0] * 8 + [1] * 8)
    signs = v.constant("f32", [1.0] * 8 + [-1.0] * 8)
    first, last = v.shuffler([*range(8)]), v.shuffler([*range(8, 16)])

    @device
    def scales(addr):
        packed = _load_16(addr)
        d = each(v.f16_to_f32(v.load_u16x8(addr))) * signs()
        both = v.to_f32(low(packed) | high(packed)) * d
        return first(both), last(both)

    return scales


def _q4_k():
    at = _at(q4_k.LAYOUT, "qs")
    quants = tuple(bits_of(at + 32 * i, twice, (0, 4), 4) for i in range(4))
    return SuperBlocks(quants, _scales_and_minimums(), run=32, has_min=True)


def _q5_k():
    at, high = _at(q5_k.LAYOUT, "qs"), _at(q5_k.LAYOUT, "qh")

    def part(i):
        return _either(bits_of(at + 32 * i, twice, (0, 4), 4), bits_of(high, twice, (2 * i, 2 * i + 1), 1, to=4))

    return SuperBlocks(tuple(map(part, range(4))), _scales_and_minimums(), run=32, has_min=True)


# ---- Q2_K, Q3_K, Q6_K: sixteen runs of 16


def _q2_k():
    at, d_at = _at(q2_k.LAYOUT, "qs"), _at(q2_k.LAYOUT, "d")
    scales_at, half = U(_at(q2_k.LAYOUT, "scales")), half_at(d_at + 2)
    assert _at(q2_k.LAYOUT, "dmin") == d_at + 2
    every = [*range(16)]
    low, high = lanes(every, [0] * 16, [15] * 16), lanes(every, [4] * 16, [15] * 16)
    d_of, m_of, minus = v.shuffler([6] * 16), v.shuffler([7] * 16), v.constant("f32", [-1.0] * 16)

    @device
    def scales(addr):
        packed, d = _load_16(addr + scales_at), half(addr)
        return v.to_f32(low(packed)) * d_of(d), v.to_f32(high(packed)) * (m_of(d) * minus())

    def part(i):
        return bits_of(at + 32 * (i // 2), twice, (4 * (i % 2), 4 * (i % 2) + 2), 2)

    return SuperBlocks(tuple(map(part, range(4))), scales, run=16, has_min=True)


def _q3_k():
    at, high = _at(q3_k.LAYOUT, "qs"), _at(q3_k.LAYOUT, "hmask")
    d_at = _at(q3_k.LAYOUT, "d")
    assert _at(q3_k.LAYOUT, "scales") == d_at - 12
    end, half = U(d_at - 14), half_at(d_at)  # sixteen bytes: two others, the scales, d
    lower = lanes([*range(2, 10), *range(2, 10)], [0] * 8 + [4] * 8, [15] * 16)
    upper = lanes([*range(10, 14)] * 4, [0] * 4 + [2] * 4 + [4] * 4 + [6] * 4, [3] * 16, to=4)
    d_of, middle = v.shuffler([7] * 16), v.constant("i32", [32] * 16)

    @device
    def scales(addr):
        packed = _load_16(addr + end)
        return v.to_f32((lower(packed) | upper(packed)) - middle()) * d_of(half(addr))

    def part(i):
        low = bits_of(at + 32 * (i // 2), twice, (4 * (i % 2), 4 * (i % 2) + 2), 2)
        return _either(low, bits_of(high, twice, (2 * i, 2 * i + 1), 1, to=2))

    return SuperBlocks(tuple(map(part, range(4))), scales, run=16, bias=4)


def _q6_k():
    at, high = _at(q6_k.LAYOUT, "ql"), _at(q6_k.LAYOUT, "qh")
    scales_at, half = U(_at(q6_k.LAYOUT, "scales")), half_at(_at(q6_k.LAYOUT, "d"))
    d_of, keep = v.shuffler([7] * 16), every_byte(15)

    @device
    def scales(addr):
        return v.to_f32(v.widen(_load_i8x16(addr + scales_at))) * d_of(half(addr))

    def part(i):
        here, move = U(at + 64 * (i // 2)), shifted((0, 0), (4 * (i % 2),) * 2)
        upper = bits_of(high + 32 * (i // 2), twice, (4 * (i % 2), 4 * (i % 2) + 2), 2, to=4)

        @device
        def unpack(addr):
            return (v.as_bytes(move(v.as_words(_load_64(addr + here)))) & keep()) | upper(addr)

        return unpack

    return SuperBlocks(tuple(map(part, range(4))), scales, run=16, bias=32)


# ---- IQ4_XS: eight runs of 32


def _iq4_xs():
    at, level = _at(iq4_xs.LAYOUT, "qs"), v.table(iq4_nl.LEVELS)
    high, low = _at(iq4_xs.LAYOUT, "scales_h"), _at(iq4_xs.LAYOUT, "scales_l")
    lower = lanes([low + i // 2 for i in range(8)], [0, 4] * 4, [15] * 8)
    upper = lanes([high + i // 4 for i in range(8)], [0, 2, 4, 6] * 2, [3] * 8, to=4)
    d_of, middle = v.shuffler([_at(iq4_xs.LAYOUT, "d") // 2] * 8), v.constant("i32", [32] * 8)
    down = v.constant("u32", ([0] * 4 + [4] * 4) * 2)
    keep = every_byte(15)

    @device
    def scales(addr):
        packed = _load_16(addr)
        return v.to_f32((lower(packed) | upper(packed)) - middle()) * d_of(v.f16_to_f32(v.load_u16x8(addr)))

    def part(i):
        here = U(at + 32 * i)

        @device
        def unpack(addr):
            return level(v.as_bytes(v.as_words(_runs_twice(_load_32(addr + here))) >> down()) & keep())

        return unpack

    return SuperBlocks(tuple(map(part, range(4))), scales, run=32, signed=True)


_UNPACKED = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs}
FUNCTIONS = {
    name: Functions(super_blocks=make, columns=COLUMNS[name], encode=ENCODERS[name]) for name, make in _UNPACKED.items()
}
