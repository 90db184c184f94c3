"""Primitives for 16 rows at once and for register tiles against NumPy, at each CPU level."""

import numpy as np
import pytest
from guard_page import at_the_end
from levels import OTHERS, run_at
from primitive_checks import F32, POISON, Array, four_products, kernel, poisoned, same

from pyggml import jit
from pyggml.quants.fp4 import E8M0


@pytest.mark.parametrize("level", OTHERS)
def test_at_level(level: str) -> None:
    run_at(level, __file__)


@pytest.mark.parametrize("last", [15, 14, 7, 0])
@pytest.mark.parametrize("keep", [16, 8])
def test_transposer(keep: int, last: int) -> None:
    stride = 68
    src = at_the_end(last * stride + 64)
    src[:] = np.random.default_rng(12).integers(0, 256, len(src)).astype(np.uint8)
    rows = np.stack([src[stride * min(i, last) :][:64].view(np.uint32) for i in range(16)])
    out = np.full((17, 16), 7, np.uint32)
    kernel("tiles.transposed", "piip", keep)(src, stride, last, out)
    same(out[:keep], np.ascontiguousarray(rows.T[:keep]))
    assert (out[keep:] == 7).all()


@pytest.mark.parametrize("stride", [54, 68])
def test_columns_of_16_rows(stride: int) -> None:
    """Whose last byte may be the last one that there is."""
    from primitive_kernels.tiles import BITS, BYTES, HALVES_AT, LEVELS, NIBBLES

    src = at_the_end(15 * stride + BYTES + 32)
    src[:] = np.random.default_rng(15).integers(0, 256, len(src)).astype(np.uint8)
    rows = np.stack([src[stride * i :][: BYTES + 32] for i in range(16)])
    out = poisoned(2944)
    assert HALVES_AT[-1] == BYTES + 30
    kernel("tiles.of_16_rows", "pip")(src, stride, out)

    def turned(q: Array) -> Array:
        """(16, 32) -> word j of every row, for j from 0 to 7."""
        return np.ascontiguousarray(q.reshape(16, 8, 4).transpose(1, 0, 2)).reshape(-1)

    packed = rows[:, NIBBLES : NIBBLES + 16]
    nibbles = np.concatenate([packed & 15, packed >> 4], 1)
    bits = np.unpackbits(rows[:, BITS : BITS + 4], axis=1, bitorder="little") * np.uint8(16)
    whole = np.ascontiguousarray(rows[:, BYTES:])
    form = whole ^ np.uint8(128 if jit.level() == "vnni" else 0)
    parts = (nibbles, np.array(LEVELS, np.int8).view(np.uint8)[nibbles], nibbles | bits, whole, form)
    for i, part in enumerate(parts):
        same(out[512 * i :][:512], turned(part), f"part {i}")
    for i, at in enumerate(HALVES_AT):
        halves = np.ascontiguousarray(rows[:, at : at + 2]).view(np.float16)[:, 0].astype(F32)
        found = np.ascontiguousarray(out[2560 + 64 * i :][:64]).view(F32)
        assert np.array_equal(found, halves, equal_nan=True), i
    same(np.ascontiguousarray(out[2880:]).view(F32), E8M0[rows[:, BYTES]], "exponents")


def test_parts_of_16_rows() -> None:
    from primitive_kernels.tiles import HALVES, LEVELS, NUMBERS, PARTS

    stride = 54
    src = at_the_end(15 * stride + 38)
    src[:] = np.random.default_rng(17).integers(0, 256, len(src)).astype(np.uint8)
    rows = [np.ascontiguousarray(src[stride * i :][:38]) for i in range(16)]
    out = poisoned(512)
    kernel("tiles.parts_of_16_rows", "pip")(src, stride, out)

    def word(row: Array, at: int, number: int) -> int:
        return int(row[at + 4 * number :][:4].view(np.uint32)[0])

    def column(parts: list[tuple[int, int, int, int, int]]) -> Array:
        """u8 (16, 4)"""
        found = np.zeros((16, 4), np.uint8)
        for at, number, right, keep, left in parts:
            moved = np.array([word(row, at, number) >> right for row in rows], np.uint32)
            found |= (moved.view(np.uint8).reshape(16, 4) & np.uint8(keep)) << np.uint8(left)
        return found

    first, second = map(column, PARTS)
    found = np.array(LEVELS, np.int8).view(np.uint8)[first]
    form = found ^ np.uint8(128 if jit.level() == "vnni" else 0)
    for i, part in enumerate((first, second, found, form)):
        same(out[64 * i :][:64], part.reshape(-1), f"column {i}")
    for i, (parts, which) in enumerate(NUMBERS):
        at, number, right, sign = HALVES[which]
        for r, row in enumerate(rows):
            n = 0
            for part_at, part_word, down, keep, left in parts:
                n |= (word(row, part_at, part_word) >> down & keep) << left
            half = np.uint16(word(row, at, number) >> right & 0xFFFF).view(np.float16).astype(F32)
            expected = F32((n ^ 128) - 128) * (half * F32(sign))
            actual = out[256 + 64 * i + 4 * r :][:4].view(F32)[0]
            assert actual == expected or (np.isnan(actual) and np.isnan(expected)), (i, r)


def test_a_tile_of_the_first_of_a_panel() -> None:
    from primitive_kernels.tiles import WIDTH

    rng = np.random.default_rng(16)
    w, scale = rng.normal(size=16).astype(F32), rng.normal(size=WIDTH).astype(F32)
    q, s = rng.integers(0, 32, (4, 64)).astype(np.uint8), rng.integers(-127, 128, (4, WIDTH, 4)).astype(np.int8)
    starts = rng.integers(-100, 100, WIDTH).astype(np.int32)
    out = poisoned(1024 + 64)
    kernel("tiles.first_of_a_panel", "pppp")(
        w, q, np.concatenate([a.ravel().view(np.uint8) for a in (scale, starts, s)]), out
    )
    sums = sum(np.stack([four_products(q[i], np.tile(c, 16))[0] for c in s[i, :2]]).astype(np.int64) for i in range(4))
    same(out[:128].view(F32).reshape(2, 16), (sums + starts[:2, None] * 128).astype(F32))
    same(out[128:256].view(F32).reshape(2, 16), w * scale[:2, None])
    assert (out[256:1024] == POISON).all()


@pytest.mark.parametrize("extreme", [False, True])
def test_columns_of_a_tile(extreme: bool) -> None:
    from primitive_kernels.tiles import WIDTH

    rng = np.random.default_rng(13)
    w = rng.normal(size=16).astype(F32)
    q5, q6, q7 = (rng.integers(n if extreme else 0, n + 1, (4, 64)).astype(np.uint8) for n in (31, 63, 127))
    q8 = rng.integers(-128, -127 if extreme else 128, (4, 64)).astype(np.int8)
    scale = rng.normal(size=WIDTH).astype(F32)
    starts = rng.integers(-100, 100, WIDTH).astype(np.int32)
    s = rng.integers(127 if extreme else -127, 128, (4, WIDTH, 4)).astype(np.int8)
    s[:, 1] *= -1
    f = rng.normal(size=(WIDTH, 16)).astype(F32)
    y = np.concatenate([a.ravel().view(np.uint8) for a in (scale, starts, s, f)])
    out = poisoned(8192 + 64)
    sums = [
        sum(np.stack([four_products(q[i], np.tile(c, 16))[0] for c in s[i]]).astype(np.int64) for i in range(4))
        for q in (q5, q6, q8, q7)
    ]
    kernel("tiles.columns", "pppppip")(w, q5, np.concatenate([q6, q7]), q8, y, 11, out)
    one, two, three, four, five, six = (out[1024 * i :][: 64 * WIDTH].view(F32).reshape(WIDTH, 16) for i in range(6))
    same(one, (sums[0] + starts[:, None] * 128).astype(F32), "5 bits")
    same(two, sums[1].astype(F32), "6 bits")
    same(six, sums[3].astype(F32), "7 bits")
    bias = 128 * s.astype(np.int64).sum(axis=(0, 2))[:, None] if jit.level() == "vnni" else 0
    same(three, (sums[2] + bias).astype(F32) * (w * scale[:, None]) + F32(0), "signed")
    scaled = f * scale[:, None]
    same(four[:2], scaled[:2], "load_scaled")
    assert (four[2].view(np.uint8) == POISON).all(), "columns that are not wanted"
    exact = w.astype(np.float64) * scale[:, None].astype(np.float64) + scaled
    assert np.allclose(five[:, :11], exact[:, :11], rtol=3e-7, atol=1e-7)
    assert (np.ascontiguousarray(five[:, 11:]).view(np.uint8) == POISON).all(), "rows that are not wanted"


@pytest.mark.parametrize(("columns", "rows"), [(1, 8), (3, 4), (4, 4), (4, 1), (2, 2)])
def test_groups_of_columns(columns: int, rows: int) -> None:
    rng = np.random.default_rng(14)
    x = rng.normal(size=(2, 16)).astype(F32)
    y = rng.normal(size=(columns, 3, 16)).astype(F32)  # a column's third row is not for it
    numbers = rng.normal(size=columns).astype(F32)
    numbers[-1] = 0
    out = poisoned(1024 * (1 + columns) + 1024)
    totals = (y[:, :2].astype(np.float64) * x).sum(axis=2)
    expected = np.zeros((columns, rows))
    expected[:, 0] += totals[:, 0]
    expected[:, -1] += totals[:, 1]
    kernel("tiles.groups", "pppip", columns, rows)(x, y, numbers, y.strides[0], out)
    for c in range(columns):
        at = out[64 * c :][:64]
        assert np.allclose(at[: 4 * rows].view(F32), expected[c], rtol=1e-5, atol=1e-5), c
        assert (at[4 * rows :] == POISON).all()
    x[1, 3] = np.nan  # must not reach the column whose number is 0
    kernel("tiles.groups", "pppip", columns, rows)(x, y, numbers, y.strides[0], out)
    for c in range(columns):
        at = out[1024 * (1 + c) :][:1024]
        sums = np.zeros((rows, 16))
        sums[0] += 2.0 * x[0] * numbers[c]
        sums[-1] += x[1] * numbers[c] if numbers[c] else 0.0
        assert np.allclose(at[: 64 * rows].view(F32).reshape(rows, 16), sums, rtol=1e-6, atol=1e-6, equal_nan=True), c
        assert (at[64 * rows :] == POISON).all()
    assert (out[1024 * (1 + columns) :] == POISON).all(), "rows that are not wanted"
