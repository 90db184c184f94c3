"""Whole blocks of the types that have no kernels of their own, as F32: one kernel a type, called by those of dequant_fallback.py.

Owns how vector code reads these layouts, to the bit as in quants/; knows no op. A kernel gets the address of the first
block, that of the result, and the number of blocks.
"""

import numpy as np

from pyggml.dtypes import SIZES, GGMLType
from pyggml.quants import quant


def decode(name):
    """-> kernel(x, to, blocks)."""
    from pyggml import simd as v

    U = v.U
    dtype = GGMLType[name]
    block = _BLOCKS[name](quant(dtype).layout)
    size, values = U(SIZES[dtype].type_size), U(4 * SIZES[dtype].block_size)

    def kernel(x, to, blocks):
        at = U(to)
        for _ in range(blocks):
            block(x, at)
            x += size
            at += values

    return kernel


def _offsets(layout, *names):
    from pyggml import simd as v

    return [v.U(layout.fields[name][1]) for name in names]


def _by_bytes(table):
    """-> factory of types whose bytes stand for values of `table` (256, values), times d."""

    def factory(layout):
        from pyggml import simd as v
        from pyggml.simd.constants import memory

        U = v.U
        count = table.shape[1]
        d_at, q_at = _offsets(layout, "d", "qs")
        entries, load = memory(table.astype(np.float32)), v.loader("f32", count)
        splat, n, step = v.splat_like("f32", count), layout["qs"].shape[0], U(4 * count)

        @v.device
        def block(x, to):
            d = splat(v.f16_at(x + d_at))
            q = x + q_at
            for _ in range(n):
                v.store(to, d * load(entries() + step * U(v.u8_at(q))))
                to += step
                q += U(1)

        return block

    return factory


_EVERY = np.arange(256)[:, None]
_q1_0 = _by_bytes(np.where((_EVERY >> np.arange(8)) & 1, 1, -1))
_q2_0 = _by_bytes(((_EVERY >> np.arange(0, 8, 2)) & 3) - 1)


def _tq2_0(layout):
    from pyggml import simd as v

    U = v.U
    d_at, q_at = _offsets(layout, "d", "qs")
    three, one = v.constant("i32", [3] * 16), v.constant("i32", [1] * 16)
    shifts = [v.constant("i32", [2 * i] * 16) for i in range(4)]
    s0, s1, s2, s3 = shifts

    @v.device
    def values(q, d):
        return v.to_f32((q & three()) - one()) * d

    @v.device
    def block(x, to):
        d = v.splat_f32(v.f16_at(x + d_at))
        for part in range(4):  # sixteen bytes: parts 0 and 1 of the first 128 values, 2 and 3 of the others
            q = v.widen(v.load_u8x16(x + q_at + U(16 * part)))
            at = to + U(512 * (part >> 1) + 64 * (part & 1))
            v.store(at, values(q >> s0(), d))
            v.store(at + U(128), values(q >> s1(), d))
            v.store(at + U(256), values(q >> s2(), d))
            v.store(at + U(384), values(q >> s3(), d))

    return block


def _tq1_0(layout):
    from pyggml import simd as v

    U = v.U
    d_at, q_at, h_at = _offsets(layout, "d", "qs", "qh")
    byte, eight, one = (v.constant("i32", [x] * 16) for x in (255, 8, 1))
    part = v.part_loader("u8", 16)

    @v.device
    def digit(q, d):
        """The digit before the point, of bytes times three."""
        return v.to_f32((((q & byte()) + (q & byte()) + (q & byte())) >> eight()) - one()) * d

    @v.device
    def digits(q, d, to, step, count, lanes):
        for _ in range(count):
            v.store_part(to, digit(q, d), lanes)
            q = (q + q + q) & byte()
            to += step

    @v.device
    def block(x, to):
        d = v.splat_f32(v.f16_at(x + d_at))
        q = x + q_at
        digits(v.widen(v.load_u8x16(q)), d, to, U(128), 5, 16)
        digits(v.widen(v.load_u8x16(q + U(16))), d, to + U(64), U(128), 5, 16)
        digits(v.widen(v.load_u8x16(q + U(32))), d, to + U(640), U(64), 5, 16)
        digits(v.widen(part(x + h_at, 4)), d, to + U(960), U(16), 4, 4)

    return block


def _mxfp4(layout):
    from pyggml import simd as v
    from pyggml.quants.fp4 import E8M0, LEVELS
    from pyggml.simd.constants import memory

    U = v.U
    e_at, q_at = _offsets(layout, "e", "qs")
    powers = memory(np.append(E8M0, np.zeros(256 - len(E8M0), np.float32)))
    level, low, four = v.table(LEVELS), v.constant("i32", [15] * 16), v.constant("i32", [4] * 16)

    @v.device
    def block(x, to):
        d = v.splat_f32(v.f32_at(powers() + U(4) * U(v.u8_at(x + e_at))))
        q = v.widen(v.load_u8x16(x + q_at))
        v.store(to, v.to_f32(v.widen(level(v.low_u8(q & low())))) * d)
        v.store(to + U(64), v.to_f32(v.widen(level(v.low_u8(q >> four())))) * d)

    return block


def _nvfp4(layout):
    from pyggml import simd as v
    from pyggml.quants.fp4 import LEVELS, UE4M3
    from pyggml.simd.constants import memory

    U = v.U
    d_at, q_at = _offsets(layout, "d", "qs")
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


_BLOCKS = {
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
}
