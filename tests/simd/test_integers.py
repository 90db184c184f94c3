"""Primitives of integers, of pieces of blocks and of tables against NumPy, at each CPU level."""

import numpy as np
import pytest
from guard_page import at_the_end
from hypothesis import given, settings
from hypothesis import strategies as st
from levels import OTHERS, run_at
from primitive_checks import F32, Array, four_products, kernel, poisoned, same

from pyggml import jit


@pytest.mark.parametrize("level", OTHERS)
def test_at_level(level: str) -> None:
    run_at(level, __file__)


def test_integer_arithmetic() -> None:
    rng = np.random.default_rng(4)
    edges = np.array([0, 1, -1, 2**31 - 1, -(2**31), 255, -128, 127, 128, 1 << 30], np.int32)
    a = rng.choice(np.concatenate([edges, rng.integers(-(2**31), 2**31, 200).astype(np.int32)]), (256, 16))
    b = rng.permutation(a.ravel()).reshape(a.shape)
    s = rng.integers(0, 32, a.shape).astype(np.int32)
    low = (a & 255).astype(np.uint8)
    expected = [
        a + b, a - b, a * b, a & b, a | b, a ^ b, a << s, a >> s, a[:, ::-1], a.astype(F32).view(np.int32),
        low.astype(np.int32), low.view(np.int8).astype(np.int32), low.view(np.int8).astype(np.int32),
        np.repeat(a.sum(axis=1, dtype=np.int32)[:, None], 16, axis=1),
    ]  # fmt: skip
    out = np.zeros((15, 256, 16), np.int32)
    kernel("integers.arithmetic", "pppip")(a, b, s, a.size, out)
    for i, e in enumerate(expected):
        same(out[i], np.ascontiguousarray(e), str(i))
    same(out[14][:, :4], np.ascontiguousarray(a[:, [0, 5, 5, 12]]), "shuffler of join")


def test_bytes_shifted() -> None:
    x = np.random.default_rng(6).integers(0, 256, 64).astype(np.uint8)
    s = (np.arange(64) % 8).astype(np.uint8)
    out = np.zeros((3, 64), np.uint8)
    kernel("integers.bytes_shifted", "ppp")(x, s, out)
    same(out, np.stack([x >> s, x << s, (x.view(np.int8) >> s.view(np.int8)).view(np.uint8)]))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_single_bits(values: list[int]) -> None:
    x = np.array([0, *values], np.uint64)
    out = np.zeros((len(x), 2), np.int64)
    kernel("integers.single_bits", "pip")(x, len(x), out)
    assert out.tolist() == [[64, -1], *[[(i & -i).bit_length() - 1 if i else 64, i.bit_length() - 1] for i in values]]


@pytest.mark.parametrize("start", [0, 2**31 - 1000, -(2**31)])
def test_dot_products_are_exact(start: int) -> None:
    """Every pair of values, four times over in a lane: the worst that the 16-bit sums meet; then random ones."""
    rng = np.random.default_rng(7)
    acc = np.full(16, start, np.int32)
    top = 256 if jit.level() in ("vnni", "generic") else 64

    def run(w: Array, s: Array) -> Array:
        out = np.zeros((2, len(w) // 64, 16), np.int32)
        kernel("integers.dots", "pppip")(acc, w, s, len(w) // 64, out)
        return out

    def pairs(ws: Array, ss: Array) -> tuple[Array, Array]:
        w, s = (np.repeat(g.ravel(), 4) for g in np.meshgrid(ws, ss))
        more = 64 * 100 + -len(w) % 64
        return np.concatenate([w, rng.choice(ws, more)]), np.concatenate([s, rng.choice(ss, more)])

    w, s = pairs(np.arange(top).astype(np.uint8), np.arange(-128, 128).astype(np.int8))
    same(run(w, s)[0], (four_products(w, s) + start).astype(np.int32), "u8 x i8")
    w, s = pairs(np.arange(-128, 128).astype(np.int8), np.arange(-127, 128).astype(np.int8))
    bias = 128 if jit.level() == "vnni" else 0
    expected = four_products(w, s) + bias * four_products(np.ones_like(w), s) + start
    same(run(w, s)[1], expected.astype(np.int32), "weights")


def test_pieces_of_blocks() -> None:
    from primitive_kernels.integers import BITS, BITS_ONE, BYTES, BYTES_ONE, NIBBLES, NIBBLES_ONE

    block = np.random.default_rng(8).integers(0, 256, 68).astype(np.uint8)
    end = at_the_end(68)
    end[:] = block
    out = np.zeros((6, 64), np.uint8)
    kernel("integers.pieces", "pp")(end, out)

    def nibbles(at: int) -> Array:
        q = block[at : at + 16]
        return np.concatenate([q & 15, q >> 4])

    def flags(at: int, value: int) -> Array:
        return np.unpackbits(block[at : at + 4], bitorder="little") * np.uint8(value)

    def in_two(*halves: Array) -> Array:
        return np.concatenate([*halves, np.zeros(32, np.uint8)])[:64]

    same(out[0], in_two(*map(nibbles, NIBBLES)))
    same(out[1], in_two(*map(nibbles, NIBBLES_ONE)))
    same(out[2], in_two(*(flags(o, 16) for o in BITS)))
    same(out[3], in_two(*(flags(o, 255) for o in BITS_ONE)))
    same(out[4], in_two(*(block[o : o + 32] for o in BYTES)))
    same(out[5], in_two(*(block[o : o + 32] for o in BYTES_ONE)))


def test_grids_and_signs() -> None:
    from primitive_kernels.integers import RUNS_OF_4, RUNS_OF_8

    rng = np.random.default_rng(9)
    x = np.array([0, 199, 7, *rng.integers(0, 200, 12), 199], np.int32)
    signs, values = rng.integers(0, 256, 8, np.uint8), rng.integers(0, 256, 64, np.uint8)
    out = poisoned(192)
    kernel("integers.grids", "ppp")(x, np.concatenate([signs, values]), out)
    same(out[:64], RUNS_OF_8[x[:8]].reshape(-1), "runs of eight")
    same(out[64:128], RUNS_OF_4[x].reshape(-1), "runs of four")
    minus = np.unpackbits(signs, bitorder="little") == 1
    same(out[128:], np.where(minus, -values.view(np.int8), values.view(np.int8)).view(np.uint8), "signs")


def test_tables_and_words() -> None:
    from primitive_kernels.integers import LEVELS

    levels = np.array(LEVELS, np.int8)
    for seed in range(4):
        x = np.random.default_rng(seed).integers(0, 16, 64).astype(np.uint8)
        out = np.zeros(176, np.uint8)
        kernel("integers.tables", "pp")(x, out)
        found = levels[x].view(np.uint8)
        same(out[:112], np.concatenate([found, found[:32], found[:16]]))
        same(out[112:].view(np.uint32), x.view(np.uint32) << np.uint32(3))


def test_constants_and_broadcasts() -> None:
    x = np.array([0x83, 0x7F, 0x12, 0xC1], np.uint8)
    out = poisoned(640)
    kernel("integers.constants", "pp")(x, out)
    four = np.tile(x, 16)
    expected = [
        np.arange(16, dtype=np.int32).view(np.uint8), np.zeros(64, np.uint8), np.full(64, 300 & 255, np.uint8),
        four[:32], np.zeros(32, np.uint8), four, four, four, four, np.zeros(128, np.uint8),
    ]  # fmt: skip
    same(out, np.concatenate(expected))
