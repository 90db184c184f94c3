"""TQ1_0 and TQ2_0: values -1, 0 and 1, five in a byte and four.

Owns how vector code reads and writes these layouts. Imported by factories only (Numba).
"""

import numpy as np

from pyggml import simd as v
from pyggml.jit import device
from pyggml.kernels.cpu.formats.byte_blocks import ONE, SPARE, ZERO, at, put_byte
from pyggml.kernels.cpu.formats.forms import Functions
from pyggml.quants import tq1_0, tq2_0

U = v.U


def _tq2_0():
    d_at, q_at = (at(tq2_0.LAYOUT, field) for field in ("d", "qs"))
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


def _tq1_0():
    d_at, q_at, h_at = (at(tq1_0.LAYOUT, field) for field in ("d", "qs", "qh"))
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


@device
def _trits(room):
    """The scale of 256 values, which become bytes at SPARE: C's `int xi = lroundf(x * id) + 1`."""
    d = ZERO
    for i in range(256):
        x = abs(v.f32_at(room + U(4 * i)))
        d = d if d > x else x
    by = ONE / d if d != ZERO else ZERO
    for i in range(256):
        x = np.float64(v.f32_at(room + U(4 * i)) * by)
        q = np.int64(1)  # of what no i64 holds
        if abs(x) < 2.0**63:
            q = np.int64(x + (0.5 if x > 0.0 else -0.5)) + 1
        put_byte(room + U(SPARE + i), q)
    return d


def _tq1_0_encode():
    d_at, q_at, h_at = (at(tq1_0.LAYOUT, field) for field in ("d", "qs", "qh"))

    @device
    def pack(trit, step, count, to):
        """`count` of five digits, `step` bytes apart."""
        q = np.int64(0)
        for i in range(5):
            q = q * 3 + (np.int64(v.u8_at(trit + U(step * i))) if i < count else 0)
        put_byte(to, ((q & 255) * 256 + 242) // 243)

    @device
    def encode(block, room):
        v.put_f16(block + d_at, _trits(room))
        trits = room + U(SPARE)
        for i in range(32):
            pack(trits + U(i), 32, 5, block + q_at + U(i))
        for i in range(16):
            pack(trits + U(160 + i), 16, 5, block + q_at + U(32 + i))
        for i in range(4):
            pack(trits + U(240 + i), 4, 4, block + h_at + U(i))

    return encode


def _tq2_0_encode():
    d_at, q_at = at(tq2_0.LAYOUT, "d"), at(tq2_0.LAYOUT, "qs")

    @device
    def encode(block, room):
        v.put_f16(block + d_at, _trits(room))
        for i in range(64):
            trit = room + U(SPARE + (i >> 5) * 128 + (i & 31))
            q = np.int64(0)
            for j in range(4):
                q |= (np.int64(v.u8_at(trit + U(32 * j))) & 3) << (2 * j)
            put_byte(block + q_at + U(i), q)

    return encode


FUNCTIONS = {
    "TQ1_0": Functions(dequantise=_tq1_0, encode=_tq1_0_encode),
    "TQ2_0": Functions(dequantise=_tq2_0, encode=_tq2_0_encode),
}
