"""How kernels read single elements of any type: a family of types is one kernel, which learns when it runs which of them
it reads. Owns the families and the bits of the common types as GPU code; their meaning is in `quants/`.

The rest is in small_blocks.py and codebook.py. Types of integers that products read 32 at a time: `unpack.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.layout import FLOATS
from pyggml.quants.iq4_nl import LEVELS

if TYPE_CHECKING:
    from pyggml.kernels.cuda.spec import DeviceAddress
    from pyggml.lowering.cuda import Builder

T = GGMLType
SIMPLE = (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.IQ4_NL)
SUPER = (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_XS)
SMALL = (T.Q1_0, T.Q2_0, T.TQ1_0, T.TQ2_0, T.MXFP4, T.NVFP4)
CODEBOOK = (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S)
BLOCKS = (*SIMPLE, *SUPER)
"""Blocks of integers with a scale and a minimum."""
READ = (*FLOATS, *BLOCKS, *SMALL, *CODEBOOK)
"""All types whose elements kernels read as f32."""
FAMILIES = {"floats": FLOATS, "simple": SIMPLE, "super": SUPER, "small": SMALL, "codebook": CODEBOOK}


def reader(builder: Builder, dtype: GGMLType) -> tuple[str, tuple[int, int | DeviceAddress]]:
    """The family of a type, and what its `element` asks for: the type's number, the address of its table (0: none)."""
    family = next(name for name, types in FAMILIES.items() if dtype in types)
    return family, (FAMILIES[family].index(dtype), table_of(builder, dtype))


def table_of(builder: Builder, dtype: GGMLType) -> int | DeviceAddress:
    """Where the runs of values are that a codebook type's blocks number; 0 for other types."""
    if dtype not in CODEBOOK:
        return 0
    found: DeviceAddress | None = builder.remembered_constant(dtype)
    if found is None:
        from pyggml.quants.codebook import grid

        found = builder.constant(grid("IQ1_S" if dtype == T.IQ1_M else dtype.name), dtype)
    return found


def element(family: str):
    """-> f(row, i, step, kind, table): element i of a row as f32, rounded as the plain functions in `quants/` round it.

    step: bytes between elements that are no blocks. kind, table: see `reader`.
    """
    from pyggml.kernels.cuda import device as d

    if family == "floats":
        from pyggml.kernels.cuda.convert import access

        load, _ = access()

        @d.inline
        def one(row, i, step, kind, table):
            return load(row + i * step, kind)

        return one
    if family == "codebook":
        from pyggml.kernels.cuda.codebook import elements

        return elements()
    if family == "small":
        from pyggml.kernels.cuda.small_blocks import elements

        return _of_six(d, elements())
    makers = (_q4_0, _q4_1, _q5_0, _q5_1, _q8_0, _iq4_nl) if family == "simple" else None
    return _of_six(d, [d.inline(make(d)) for make in makers or (_q2_k, _q3_k, _q4_k, _q5_k, _q6_k, _iq4_xs)])


def _of_six(d, functions):
    f0, f1, f2, f3, f4, f5 = functions

    @d.inline
    def one(row, i, step, kind, table):
        if kind == 0:
            return f0(row, i)
        if kind == 1:
            return f1(row, i)
        if kind == 2:
            return f2(row, i)
        if kind == 3:
            return f3(row, i)
        if kind == 4:
            return f4(row, i)
        return f5(row, i)

    return one


def _table64(values: np.ndarray) -> int:
    """Eight bytes as one i64."""
    return int(np.ascontiguousarray(values, np.int8).view(np.int64)[0])


def level():
    """-> f(q): the level of IQ4_NL and IQ4_XS with the number q, as an integer."""
    from pyggml.kernels.cuda import device as d

    low, high = _table64(LEVELS[:8]), _table64(LEVELS[8:])

    @d.inline
    def look_up(q):
        table = d.i64(high) if q > 7 else d.i64(low)
        byte = (table >> ((q & 7) * 8)) & 255
        return byte - 256 if byte > 127 else byte

    return look_up


def k4_scales():
    """-> scale(at, sub), minimum(at, sub): the 6-bit numbers of Q4_K and Q5_K (ggml-quants.c: get_scale_min_k4)."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def scale(at, sub):
        if sub < 4:
            return d.ld_u8(at + sub) & 63
        return (d.ld_u8(at + sub + 4) & 15) | ((d.ld_u8(at + sub - 4) >> 6) << 4)

    @d.inline
    def minimum(at, sub):
        if sub < 4:
            return d.ld_u8(at + sub + 4) & 63
        return (d.ld_u8(at + sub + 4) >> 4) | ((d.ld_u8(at + sub) >> 6) << 4)

    return scale, minimum


def _q4_0(d):
    def q4_0(row, i):
        b = row + (i >> 5) * 18
        j = i & 31
        q = (d.ld_u8(b + 2 + (j & 15)) >> ((j >> 4) * 4)) & 15
        return d.f32(q - 8) * d.ld_f16(b)

    return q4_0


def _q4_1(d):
    def q4_1(row, i):
        b = row + (i >> 5) * 20
        j = i & 31
        q = (d.ld_u8(b + 4 + (j & 15)) >> ((j >> 4) * 4)) & 15
        return d.mul_rn(d.f32(q), d.ld_f16(b)) + d.ld_f16(b + 2)

    return q4_1


def _q5_0(d):
    def q5_0(row, i):
        b = row + (i >> 5) * 22
        j = i & 31
        q = (d.ld_u8(b + 6 + (j & 15)) >> ((j >> 4) * 4)) & 15
        high = (d.ld_u8(b + 2 + (j >> 3)) >> (j & 7)) & 1
        return d.f32((q | (high << 4)) - 16) * d.ld_f16(b)

    return q5_0


def _q5_1(d):
    def q5_1(row, i):
        b = row + (i >> 5) * 24
        j = i & 31
        q = (d.ld_u8(b + 8 + (j & 15)) >> ((j >> 4) * 4)) & 15
        high = (d.ld_u8(b + 4 + (j >> 3)) >> (j & 7)) & 1
        return d.mul_rn(d.f32(q | (high << 4)), d.ld_f16(b)) + d.ld_f16(b + 2)

    return q5_1


def _q8_0(d):
    def q8_0(row, i):
        b = row + (i >> 5) * 34
        return d.f32(d.ld_i8(b + 2 + (i & 31))) * d.ld_f16(b)

    return q8_0


def _iq4_nl(d):
    look_up = level()

    def iq4_nl(row, i):
        b = row + (i >> 5) * 18
        j = i & 31
        q = (d.ld_u8(b + 2 + (j & 15)) >> ((j >> 4) * 4)) & 15
        return d.f32(look_up(q)) * d.ld_f16(b)

    return iq4_nl


def _q2_k(d):
    def q2_k(row, i):
        b = row + (i >> 8) * 84
        r = i & 127
        q = (d.ld_u8(b + 16 + ((i >> 7) & 1) * 32 + (r & 31)) >> ((r >> 5) * 2)) & 3
        s = d.ld_u8(b + ((i >> 4) & 15))
        scale = d.ld_f16(b + 80) * d.f32(s & 15)
        minimum = d.mul_rn(d.ld_f16(b + 82), d.f32(s >> 4))
        return d.mul_rn(scale, d.f32(q)) - minimum

    return q2_k


def _q3_k(d):
    def q3_k(row, i):
        b = row + (i >> 8) * 110
        r = i & 127
        low = (d.ld_u8(b + 32 + ((i >> 7) & 1) * 32 + (r & 31)) >> ((r >> 5) * 2)) & 3
        high = (d.ld_u8(b + (i & 31)) >> ((i >> 5) & 7)) & 1
        s = (i >> 4) & 15
        scale = (d.ld_u8(b + 96 + (s & 7)) >> ((s >> 3) * 4)) & 15
        scale = scale | (((d.ld_u8(b + 104 + (s & 3)) >> ((s >> 2) * 2)) & 3) << 4)
        return d.ld_f16(b + 108) * d.f32(scale - 32) * d.f32((low | (high << 2)) - 4)

    return q3_k


def _q4_k(d):
    scale, minimum = k4_scales()

    def q4_k(row, i):
        b = row + (i >> 8) * 144
        sub = (i >> 5) & 7
        q = (d.ld_u8(b + 16 + (sub >> 1) * 32 + (i & 31)) >> ((sub & 1) * 4)) & 15
        low = d.mul_rn(d.ld_f16(b + 2), d.f32(minimum(b + 4, sub)))
        return d.mul_rn(d.ld_f16(b) * d.f32(scale(b + 4, sub)), d.f32(q)) - low

    return q4_k


def _q5_k(d):
    scale, minimum = k4_scales()

    def q5_k(row, i):
        b = row + (i >> 8) * 176
        sub = (i >> 5) & 7
        q = (d.ld_u8(b + 48 + (sub >> 1) * 32 + (i & 31)) >> ((sub & 1) * 4)) & 15
        q = q | (((d.ld_u8(b + 16 + (i & 31)) >> sub) & 1) << 4)
        low = d.mul_rn(d.ld_f16(b + 2), d.f32(minimum(b + 4, sub)))
        return d.mul_rn(d.ld_f16(b) * d.f32(scale(b + 4, sub)), d.f32(q)) - low

    return q5_k


def _q6_k(d):
    def q6_k(row, i):
        b = row + (i >> 8) * 210
        n, r = (i >> 7) & 1, i & 127
        part, low = r >> 5, r & 31
        q = (d.ld_u8(b + n * 64 + (part & 1) * 32 + low) >> ((part >> 1) * 4)) & 15
        q = q | (((d.ld_u8(b + 128 + n * 32 + low) >> (part * 2)) & 3) << 4)
        return d.ld_f16(b + 208) * d.f32(d.ld_i8(b + 192 + ((i >> 4) & 15))) * d.f32(q - 32)

    return q6_k


def _iq4_xs(d):
    look_up = level()

    def iq4_xs(row, i):
        b = row + (i >> 8) * 136
        sub, j = (i >> 5) & 7, i & 31
        q = (d.ld_u8(b + 8 + sub * 16 + (j & 15)) >> ((j >> 4) * 4)) & 15
        scale = (d.ld_u8(b + 4 + (sub >> 1)) >> ((sub & 1) * 4)) & 15
        scale = scale | (((d.ld_u16(b + 2) >> (sub * 2)) & 3) << 4)
        return d.ld_f16(b) * d.f32(scale - 32) * d.f32(look_up(q))

    return iq4_xs
