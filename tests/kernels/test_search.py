"""The compiled searches for scales against the plain ones, to the bit."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from levels import OTHERS, run_at

from pyggml.dtypes import GGMLType
from pyggml.kernels.cpu.search import searches
from pyggml.quants import QUANTS, quantize_row
from pyggml.quants.base import Searches
from pyggml.quants.search import PLAIN

CALLS: dict[str, Callable[[Searches, np.ndarray], tuple[np.ndarray, ...]]] = {
    "Q2_K": lambda s, x: s.scales_and_minimums(x, np.abs(x), 3, -0.5, 0.1, 15, absolute=True),
    "Q4_K": lambda s, x: s.scales_and_minimums(x, np.abs(x) + x * x, 15, -1.0, 0.1, 20, absolute=False),
    "Q5_K": lambda s, x: s.scales_and_minimums(x, np.abs(x) + 1, 31, -0.5, 0.1, 15, absolute=False),
    "Q3_K": lambda s, x: s.scales_by_refinement(x, 4),
    "Q6_K": lambda s, x: s.scales(x, 32),
}


def groups(seed: int, k: int, n: int, exponent: int) -> np.ndarray:
    """Columns of every kind: of one value, all zero, of one sign, of whole numbers, of signed zeros among others."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((k, n)).astype(np.float32)
    x[:, ::5] = x[0, ::5]
    x[:, ::7] = 0
    x[:, 3::11] = np.abs(x[:, 3::11])
    x[:, 5::11] = -np.abs(x[:, 5::11])
    x[:, 6::13] = np.rint(8 * x[:, 6::13])
    x[::3, 8::13] = -0.0
    return np.ldexp(x, exponent)


def check(call: Callable[..., Any], search: Searches, x: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        for ours, plain in zip(call(search, x), call(PLAIN, x), strict=True):
            assert ours.dtype == plain.dtype and ours.shape == plain.shape
            np.testing.assert_array_equal(ours.view(np.int32), plain.view(np.int32))


@pytest.mark.parametrize("name", CALLS)
def test_the_same_to_the_bit(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([16, 32]), st.integers(1, 70), st.integers(-140, 60))
    def hunt(seed: int, k: int, n: int, exponent: int) -> None:
        check(CALLS[name], searches(), groups(seed, k, n, exponent))

    hunt()


@pytest.mark.parametrize("name", CALLS)
def test_a_mutant_is_caught(name: str) -> None:
    """Other widths of a step, one level less, the other sign."""
    ours = searches()
    mutants = [
        ours._replace(
            scales_and_minimums=lambda x, w, nmax, rmin, rdelta, steps, **more: ours.scales_and_minimums(
                x, w, nmax, rmin + 0.01, rdelta, steps, **more
            ),
            scales=lambda x, nmax: ours.scales(x * np.float32(1.0000002), nmax),
            scales_by_refinement=lambda x, nmax: ours.scales_by_refinement(x, nmax - 1),
        ),
        Searches(*(partial(lambda f, x, *more, **named: f(-x, *more, **named), f) for f in ours)),
    ]
    for mutant in mutants:
        with pytest.raises(AssertionError):
            check(CALLS[name], mutant, groups(1, 16, 200, 0))


@pytest.mark.parametrize("dtype", [t for t, quant in QUANTS.items() if quant.searches], ids=lambda t: t.name)
def test_blocks_made_with_them(dtype: GGMLType) -> None:
    x = np.ascontiguousarray(groups(9, 256, 77, -3).T)
    np.testing.assert_array_equal(quantize_row(dtype, x, searches()), quantize_row(dtype, x))


def test_types_that_search_are_these() -> None:
    assert {t.name for t, quant in QUANTS.items() if quant.searches} == {*CALLS}


@pytest.mark.parametrize("level", [level for level in OTHERS if level in ("v3", "generic")])
def test_at_level(level: str) -> None:
    """With fused multiply-add and 8 lanes, and with neither."""
    run_at(level, __file__, ("-k", "same_to_the_bit and not at_level"))
