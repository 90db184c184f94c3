"""TQ1_0 and TQ2_0: values -1, 0 and 1, five in a byte and four.

Owns how vector code reads and writes these layouts. Imported by factories only (Numba).
"""

import numpy as np

from pyggml import simd as v
from pyggml.jit import device
from pyggml.kernels.cpu.formats.byte_blocks import ONE, SPARE, ZERO, at, put_byte
from pyggml.kernels.cpu.formats.forms import Functions, SuperBlocks
from pyggml.kernels.cpu.formats.super_blocks import bits_of, every_byte, half_at, twice
from pyggml.quants import tq1_0, tq2_0

U = v.U


def _tq2_0():
    """Every run has the scale of all; q of 128 values lie in 32 bytes, two bits each."""
    d_at, q_at = (tq2_0.LAYOUT.fields[field][1] for field in ("d", "qs"))
    half, each = half_at(d_at), v.shuffler([7] * 8)
    quants = (bits_of(q_at + 32 * (i // 2), twice, (4 * (i % 2), 4 * (i % 2) + 2), 2) for i in range(4))

    @device
    def scales(addr):
        return each(half(addr))

    return SuperBlocks(tuple(quants), scales, run=32, bias=1)


def _tq1_0():
    """The same; a byte's digits are had by multiplying, which loses those before the point."""
    d_at = tq1_0.LAYOUT.fields["d"][1]
    half, each = half_at(d_at), v.shuffler([7] * 8)
    last, ends = v.shuffler([*range(16, 32)] * 2), v.shuffler([*range(10, 26)] * 3 + [*range(26, 30)] * 4)
    two, three, six = every_byte(2), every_byte(3), every_byte(6)
    powers = [
        v.constant("u8", numbers)
        for numbers in (
            [1] * 32 + [3] * 32,
            [9] * 32 + [27] * 32,
            [81] * 32 + [1] * 16 + [3] * 16,
            [9] * 16 + [27] * 16 + [81] * 16 + [1] * 4 + [3] * 4 + [9] * 4 + [27] * 4,
        )
    ]
    assert tq1_0.LAYOUT.fields["qs"][1] == 0 and tq1_0.LAYOUT.fields["qh"][1] == 48 and d_at == 52

    @device
    def digit(x):
        """floor(3 x / 256) in bytes: floor(3 x / 4) is x less a quarter of it, rounded up."""
        return (x - (x >> two()) - (((x & three()) + three()) >> two())) >> six()

    def part(load, power):
        return device(lambda addr: digit(load(addr) * power()))

    @device
    def first(addr):
        return twice(v.load_u8x32(addr))

    @device
    def middle(addr):
        return v.join(v.load_u8x32(addr), last(v.load_u8x32(addr + U(16))))

    @device
    def end(addr):
        return ends(v.load_u8x32(addr + U(22)))

    @device
    def scales(addr):
        return each(half(addr))

    quants = tuple(part(*pair) for pair in zip((first, first, middle, end), powers, strict=True))
    return SuperBlocks(quants, scales, run=32, bias=1)


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
    "TQ1_0": Functions(super_blocks=_tq1_0, encode=_tq1_0_encode),
    "TQ2_0": Functions(super_blocks=_tq2_0, encode=_tq2_0_encode),
}
