"""Every block type against ggml's own functions, to the bit, NaNs included. Knows no kernel.

Each check is run on mutants too, which it must catch.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.quants import QUANTS, dequantize_row, quantize_row
from pyggml.quants.f16 import f16_to_f32, f32_to_f16

MADE = [t for t, quant in QUANTS.items() if quant.can_quantize]
FILE_TYPES = [t for t in MADE if t not in (GGMLType.Q8_1, GGMLType.Q8_K)]  # ggml_quantize_chunk has none of the two
REF_TYPES = [t for t in MADE if t not in (GGMLType.F32, GGMLType.IQ4_NL)]  # of that one, files and ops differ
READ_TYPES = [t for t in QUANTS if t not in (GGMLType.F32, GGMLType.Q8_1)]  # ggml has no dequantize_row_q8_1

# When NaNs of two kinds meet in a sum, C leaves it to the compiler which one stays; here it gets into the bytes.
ONE_NAN = [t for t in QUANTS if SIZES[t].block_size == 256 or t == GGMLType.Q1_0]


def row_of(dtype: GGMLType) -> int:
    return max(64, SIZES[dtype].block_size)


def halfway(seed: int, shape: tuple[int, int], peak: int, exponent: int) -> np.ndarray:
    """Integers up to `peak`, which stands first in each block, times a power of two: every other one lies between
    two steps when the scale is such a power as well."""
    x = np.random.default_rng(seed).integers(-peak, peak + 1, shape).astype(np.float32)
    x[:, ::32] = peak
    return np.ldexp(x, exponent)


seeds = st.integers(0, 2**32 - 1)


def smooth(seed: int, shape: tuple[int, int], exponent: int) -> np.ndarray:
    return np.ldexp(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), exponent)


def values_for(dtype: GGMLType) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 3), st.just(row_of(dtype)))
    bits = arrays(np.uint32, shapes, fill=st.integers(0, 2**32 - 1)).map(lambda x: x.view(np.float32))
    floats = arrays(np.float32, shapes, elements=st.floats(width=32), fill=st.floats(width=32))
    special = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf])
    few = arrays(np.float32, shapes, elements=special, fill=special)
    peaks = st.sampled_from([8, 16, 30, 32, 62, 254, 254])
    ties = st.builds(halfway, seeds, shapes, peaks, st.integers(-150, 110))
    return st.one_of(bits, floats, few, ties, st.builds(smooth, seeds, shapes, st.integers(-140, 30)))


Check = Callable[[np.ndarray], None]


def blocks_of(dtype: GGMLType) -> st.SearchStrategy[np.ndarray]:
    size = row_size(dtype, row_of(dtype))
    random = st.builds(lambda seed: np.random.default_rng(seed).integers(0, 256, (2, size), np.uint8), seeds)
    return st.one_of(arrays(np.uint8, (2, size)), random)


def hunt(check: Check, inputs: st.SearchStrategy[np.ndarray], examples: int = 60) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(x: np.ndarray) -> None:
        check(x)

    run()


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    differing = np.flatnonzero(ours.view(np.uint8).reshape(-1) != theirs.view(np.uint8).reshape(-1))
    assert ours.shape == theirs.shape and differing.size == 0, (
        f"{differing.size} bytes differ, first at {differing[:1]}"
    )


def check_quantize(theirs: Callable, quantize: Callable, dtype: GGMLType, x: np.ndarray) -> None:
    if dtype in ONE_NAN:
        x = np.where(np.isnan(x), np.float32(np.nan), x)
    same(quantize(dtype, x), theirs(dtype, x))


def check_dequantize(theirs: Callable, dequantize: Callable, dtype: GGMLType, blocks: np.ndarray) -> None:
    ne0 = row_of(dtype)
    same(dequantize(dtype, blocks, ne0), theirs(dtype, blocks, ne0))


@pytest.mark.parametrize("dtype", FILE_TYPES, ids=lambda t: t.name)
def test_quantize_as_ggml_quantize_chunk(peer, dtype):
    hunt(partial(check_quantize, peer.ggml.quantize_chunk, quantize_row, dtype), values_for(dtype))


@pytest.mark.parametrize("dtype", REF_TYPES, ids=lambda t: t.name)
def test_quantize_as_quantize_row_ref(peer, dtype):
    hunt(partial(check_quantize, peer.ggml.quantize_row_ref, quantize_row, dtype), values_for(dtype))


@pytest.mark.parametrize("dtype", READ_TYPES, ids=lambda t: t.name)
def test_dequantize_as_ggml(peer, dtype):
    hunt(partial(check_dequantize, peer.ggml.dequantize_row, dequantize_row, dtype), blocks_of(dtype))


# What hypothesis seldom draws: NaNs and infinities among ordinary numbers, whole rows of one value, every magnitude.
def battery(ne0: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    n = 96000 // ne0
    normal = rng.standard_normal((n, ne0)).astype(np.float32)
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    return {
        "normal": normal,
        "odd values": np.where(rng.random((n, ne0)) < 0.05, rng.choice(odd, (n, ne0)), normal),
        "only odd values": rng.choice(odd, (n, ne0)),
        "signed zeros": rng.choice(odd[4:], (n, ne0)),
        "denormals": rng.integers(0, 2**24, (n, ne0), np.uint32).view(np.float32) * np.sign(normal),
        "every magnitude": np.ldexp(normal, rng.integers(-149, 126, (n, 1))),
        "constant": np.repeat(normal[:, :1], ne0, axis=1),
        "mostly zeros": np.where(rng.random((n, ne0)) < 0.9, np.float32(0), normal),
        "whole numbers": rng.integers(-8, 9, (n, ne0)).astype(np.float32),
        "positive": np.abs(normal) + 3,
        "bits": rng.integers(0, 2**32, (n, ne0), np.uint32).view(np.float32),
    }


@pytest.mark.parametrize("name", battery(64))
def test_battery(peer, name):
    for ne0 in (64, 128, 256):
        x = battery(ne0)[name]
        for dtype in FILE_TYPES:
            if row_of(dtype) == ne0:
                check_quantize(peer.ggml.quantize_chunk, quantize_row, dtype, x)
        for dtype in REF_TYPES:
            if row_of(dtype) == ne0:
                check_quantize(peer.ggml.quantize_row_ref, quantize_row, dtype, x)


def test_iq4_nl_as_ops_write_it(peer):
    """Where a block is zero the peer leaves what lay in its memory: the values are compared, not the bytes."""
    quant = QUANTS[GGMLType.IQ4_NL]
    for name, x in battery(64).items():
        ours = quant.convert(x.reshape(-1, 32))
        theirs = peer.ggml.quantize_row_ref(quant.type, x).reshape(ours.shape)
        written = (ours[:, :2] & [255, 127]).any(axis=1)  # the scale is not zero
        same(ours[:, :2], theirs[:, :2])
        same(ours[written], theirs[written])
        if name == "normal":
            assert written.all() and (ours != quant.quantize(x.reshape(-1, 32))).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("dtype", (GGMLType.Q8_0, GGMLType.Q8_1), ids=lambda t: t.name)
def test_bytes_as_ops_write_them(peer, dtype):
    """ggml's vectorised functions, which round halves to even; where they were not compiled in, files' own."""
    quant = QUANTS[dtype]
    x = np.zeros((1, 32), np.float32)
    x[0, :2] = 127.0, 0.5
    if peer.ggml.quantize_row(dtype, x)[0, -31] == 1:
        pytest.skip("this machine's ggml has no vectorised version: a half is rounded away from zero")

    def check(x: np.ndarray) -> None:
        x = np.where(np.isnan(x), np.float32(np.nan), x)
        same(quant.convert(x.reshape(-1, 32)).reshape(len(x), -1), peer.ggml.quantize_row(dtype, x))

    for x in battery(64).values():
        check(x)
    hunt(check, values_for(dtype))


def test_every_half(peer):
    bits = np.arange(65536, dtype=np.uint16)
    same(f16_to_f32(bits)[None], peer.ggml.dequantize_row(GGMLType.F16, bits.view(np.uint8), 65536))
    same(
        dequantize_row(GGMLType.BF16, bits, 65536), peer.ggml.dequantize_row(GGMLType.BF16, bits.view(np.uint8), 65536)
    )


def test_every_half_way_to_the_next_half(peer):
    """The ties of rounding and their two neighbours, from the least denormal to the threshold of infinity."""
    halves = np.arange(0x7C00, dtype=np.uint16)
    lower = f16_to_f32(halves).astype(np.float64)
    upper = np.append(lower[1:], 65536.0)
    tie = ((lower + upper) / 2).astype(np.float32)
    x = np.concatenate([np.nextafter(tie, np.float32(0)), tie, np.nextafter(tie, np.float32(np.inf))])
    with np.errstate(over="ignore"):
        ours = f32_to_f16(np.concatenate([x, -x]))
    same(ours.view(np.uint8)[None], peer.ggml.quantize_chunk(GGMLType.F16, np.concatenate([x, -x])[None]))


def test_q8_1_is_q8_0_with_a_sum(peer):
    x = battery(64)["normal"]
    q8_0 = quantize_row(GGMLType.Q8_0, x).reshape(-1, 34)
    q8_1 = quantize_row(GGMLType.Q8_1, x).reshape(-1, 36)
    assert (q8_1[:, [0, 1, *range(4, 36)]] == q8_0).all()
    same(dequantize_row(GGMLType.Q8_1, q8_1, 32), peer.ggml.dequantize_row(GGMLType.Q8_0, q8_0, 32))


# Mutants: each differs from the truth in one thing that a reader of ggml could get wrong.
def mutant_of(dtype: GGMLType, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable:
    """quantize_row whose bytes (blocks, type_size) pass through change(blocks, values (blocks, block_size))."""
    size = SIZES[dtype]

    def quantize(_: GGMLType, x: np.ndarray) -> np.ndarray:
        blocks = quantize_row(dtype, x).reshape(-1, size.type_size).copy()
        with np.errstate(all="ignore"):
            return change(blocks, x.reshape(-1, size.block_size)).reshape(len(x), -1)

    return quantize


def scale_without_sign(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    blocks[:, 1] &= 0x7F
    return blocks


def halves_to_even(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    usual = np.isfinite(d) & (d > 1e-30)
    q = np.rint(x * (np.float32(1) / d))
    blocks[:, -32:] = np.where(usual, np.where(usual, q, 0).astype(np.int8).view(np.uint8), blocks[:, -32:])
    return blocks


def sum_of_rounded_scale(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    d = blocks[:, :2].copy().view("<f2")[:, 0].astype(np.float32)
    q = blocks[:, 4:].view(np.int8).sum(axis=1, dtype=np.int32)
    blocks[:, 2:4] = (q.astype(np.float32) * d).astype("<f2")[:, None].view(np.uint8)
    return blocks


def neighbours_in_one_byte(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    qs = blocks[:, -16:]
    q = np.concatenate([qs & 15, qs >> 4], axis=1)
    blocks[:, -16:] = q[:, ::2] | (q[:, 1::2] << 4)
    return blocks


def fifth_bits_reversed(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    qh = blocks[:, -20:-16]
    blocks[:, -20:-16] = np.packbits(np.unpackbits(qh, axis=1, bitorder="little"), axis=1, bitorder="big")
    return blocks


def truncated_upper_half(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) >> 16).astype("<u2").view(np.uint8)


def payload_of_nan_kept(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x.astype("<f2").view(np.uint8)


def first_least_is_negative_zero(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    least = np.minimum.reduce(x, axis=1)
    blocks[:, 2:4] = np.where(least == 0, np.float32(-0.0), least).astype("<f2")[:, None].view(np.uint8)
    return blocks


def nothing_changed(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    return blocks


def scales_and_minimums_swapped(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    blocks[:, 4:12] = blocks[:, [8, 9, 10, 11, 4, 5, 6, 7]]
    blocks[:, 12:16] = (blocks[:, 12:16] << 4) | (blocks[:, 12:16] >> 4)
    return blocks


def halves_of_scales_swapped(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    blocks[:, :16] = (blocks[:, :16] << 4) | (blocks[:, :16] >> 4)
    return blocks


def upper_bits_in_reverse(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    """hmask of Q3_K, qh of Q5_K: bit 7 first."""
    first = 0 if blocks.shape[1] == 110 else 16
    qh = blocks[:, first : first + 32]
    blocks[:, first : first + 32] = np.packbits(np.unpackbits(qh, axis=1, bitorder="little"), axis=1, bitorder="big")
    return blocks


def upper_bits_of_the_other_half(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    blocks[:, 128:192] = blocks[:, [*range(160, 192), *range(128, 160)]]
    return blocks


def scale_bits_of_the_neighbour(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    blocks[:, 4:8] = (blocks[:, 4:8] << 4) | (blocks[:, 4:8] >> 4)
    return blocks


def sums_of_neighbours(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    blocks[:, -32:] = blocks[:, [i ^ 2 for i in range(260, 292)]]
    return blocks


def bits_in_reverse(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    blocks[:, 2:] = np.packbits(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), axis=1, bitorder="big")
    return blocks


def floor_of_the_digits(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    """TQ1_0 where the division is not rounded up."""
    blocks[:, :52] -= blocks[:, :52] > 0
    return blocks


def first_pair_last(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    q = blocks[:, :64]
    blocks[:, :64] = (q << 6) | ((q & 12) << 2) | ((q >> 2) & 12) | (q >> 6)
    return blocks


def minus_zero(blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Zeros as the second of the two levels that are 0."""
    q = blocks[:, -16:]
    blocks[:, -16:] = np.where(q & 15 == 0, q | 8, q)
    return blocks


WRONG_QUANTIZE = [
    (GGMLType.Q1_0, bits_in_reverse),
    (GGMLType.Q2_0, neighbours_in_one_byte),
    (GGMLType.TQ1_0, floor_of_the_digits),
    (GGMLType.TQ2_0, first_pair_last),
    (GGMLType.MXFP4, minus_zero),
    (GGMLType.NVFP4, neighbours_in_one_byte),
    (GGMLType.Q2_K, halves_of_scales_swapped),
    (GGMLType.Q3_K, upper_bits_in_reverse),
    (GGMLType.Q4_K, scales_and_minimums_swapped),
    (GGMLType.Q5_K, scales_and_minimums_swapped),
    (GGMLType.Q5_K, upper_bits_in_reverse),
    (GGMLType.Q6_K, upper_bits_of_the_other_half),
    (GGMLType.Q8_K, sums_of_neighbours),
    (GGMLType.IQ4_NL, nothing_changed),  # what files have is not what ops write
    (GGMLType.IQ4_XS, scale_bits_of_the_neighbour),
    (GGMLType.Q4_0, scale_without_sign),
    (GGMLType.Q4_0, neighbours_in_one_byte),
    (GGMLType.Q4_1, neighbours_in_one_byte),
    (GGMLType.Q4_1, first_least_is_negative_zero),
    (GGMLType.Q5_0, scale_without_sign),
    (GGMLType.Q5_0, fifth_bits_reversed),
    (GGMLType.Q5_1, fifth_bits_reversed),
    (GGMLType.Q8_0, halves_to_even),
    (GGMLType.Q8_1, halves_to_even),
    (GGMLType.Q8_1, sum_of_rounded_scale),
    (GGMLType.BF16, truncated_upper_half),
    (GGMLType.F16, payload_of_nan_kept),
]


@pytest.mark.parametrize(("dtype", "change"), WRONG_QUANTIZE, ids=lambda v: getattr(v, "name", None) or v.__name__)
def test_a_wrong_quantize_is_caught(peer, dtype, change):
    check = partial(check_quantize, peer.ggml.quantize_row_ref, mutant_of(dtype, change), dtype)
    with pytest.raises(AssertionError, match="bytes differ"):
        hunt(check, values_for(dtype), examples=1000)


def least_and_scale_swapped(dtype: GGMLType, blocks: np.ndarray, ne0: int) -> np.ndarray:
    """Q4_1 read with m where d is."""
    b = blocks.reshape(-1, 20)
    return dequantize_row(dtype, np.concatenate([b[:, 2:4], b[:, :2], b[:, 4:]], axis=1), ne0)


def signalling(dtype: GGMLType, blocks: np.ndarray, ne0: int) -> np.ndarray:
    """F16 whose NaNs keep their kind."""
    h = blocks.view("<u2").astype(np.uint32)
    exact = dequantize_row(dtype, blocks, ne0).view(np.uint32)
    nan = (h & 0x7FFF) > 0x7C00
    return np.where(nan, (h & 0x8000) << 16 | (h & 0x7FFF) << 13 | 0x7F800000, exact).view(np.float32)


def off_by_one(dtype: GGMLType, blocks: np.ndarray, ne0: int) -> np.ndarray:
    """The last element of each row is its neighbour's."""
    out = dequantize_row(dtype, blocks, ne0).copy()
    out[:, -1] = out[:, -2]
    return out


WRONG_DEQUANTIZE = [(GGMLType.Q4_1, least_and_scale_swapped), (GGMLType.F16, signalling)]
WRONG_DEQUANTIZE += [(t, off_by_one) for t in READ_TYPES]


@pytest.mark.parametrize(("dtype", "mutant"), WRONG_DEQUANTIZE, ids=lambda v: getattr(v, "name", None) or v.__name__)
def test_a_wrong_dequantize_is_caught(peer, dtype, mutant):
    check = partial(check_dequantize, peer.ggml.dequantize_row, mutant, dtype)
    with pytest.raises(AssertionError, match="bytes differ"):
        hunt(check, blocks_of(dtype), examples=1000)
