"""Q1_0 and Q2_0: one and two bits a value.

Owns how vector code reads and writes these layouts. Imported by factories only (Numba).
"""

import numpy as np

from pyggml import simd as v
from pyggml.jit import device
from pyggml.kernels.cpu.formats.byte_blocks import HALF, ONE, ZERO, at, greatest, put_byte
from pyggml.kernels.cpu.formats.forms import Functions
from pyggml.quants import q1_0, q2_0
from pyggml.simd.constants import memory

U = v.U


def _by_bytes(layout, table):
    """-> () -> f(block, to) of a type whose bytes stand for values of `table` (256, values), times d."""

    def make():
        count = table.shape[1]
        d_at, q_at = at(layout, "d"), at(layout, "qs")
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

    return make


_EVERY = np.arange(256)[:, None]
_q1_0 = _by_bytes(q1_0.LAYOUT, np.where((_EVERY >> np.arange(8)) & 1, 1, -1))
_q2_0 = _by_bytes(q2_0.LAYOUT, ((_EVERY >> np.arange(0, 8, 2)) & 3) - 1)


def _q1_0_encode():
    d_at, q_at = at(q1_0.LAYOUT, "d"), at(q1_0.LAYOUT, "qs")

    @device
    def encode(block, room):
        total = ZERO
        for i in range(16):
            q = 0
            for j in range(8):
                x = v.f32_at(room + U(32 * i + 4 * j))
                total += abs(x)
                if x >= ZERO:
                    q |= 1 << j
            put_byte(block + q_at + U(i), q)
        v.put_f16(block + d_at, total / np.float32(128))

    return encode


@device
def _rounded(x):
    """roundf, where |x| is below 2^31."""
    whole = np.int64(x)
    away = abs(x - np.float32(whole)) >= HALF
    return whole + (np.int64(1) if x > ZERO else np.int64(-1)) if away else whole


def _q2_0_encode():
    d_at, q_at = at(q2_0.LAYOUT, "d"), at(q2_0.LAYOUT, "qs")
    limit = np.float32(2.0**31)

    @device
    def encode(block, room):
        d = greatest(room, 64)
        by = ONE / d if d > ZERO else ZERO
        v.put_f16(block + d_at, d)
        for i in range(16):
            q = 0
            for j in range(4):
                x = v.f32_at(room + U(16 * i + 4 * j)) * by
                if abs(x) < limit:
                    q |= max(0, min(3, _rounded(x) + 1)) << (2 * j)
            put_byte(block + q_at + U(i), q)

    return encode


FUNCTIONS = {
    "Q1_0": Functions(dequantise=_q1_0, encode=_q1_0_encode),
    "Q2_0": Functions(dequantise=_q2_0, encode=_q2_0_encode),
}
