"""LIGHTNING_INDEXER: scores of cells."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, Case, Operands, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import lightning_indexer as reference
from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cuda.blocks import SIMPLE
from pyggml.ops import Op
from pyggml.tensor import Tensor

KEYS = (F32, F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q5_1, GGMLType.IQ4_NL, GGMLType.Q4_K)


@st.composite
def cases(draw: Callable, dtype: GGMLType | None = None) -> Case:
    make = draw(operands())
    dtype = dtype or draw(st.sampled_from(KEYS))
    block = SIZES[dtype].block_size
    size = draw(st.sampled_from({1: (1, 3, 20, 33, 72, 128), 32: (32, 128)}.get(block, (block, 2 * block))))
    heads, tokens, cells = (
        draw(st.sampled_from(s)) for s in ((1, 2, 3, 4, 5, 8), (1, 2, 5, 33), (1, 7, 16, 31, 33, 70))
    )
    streams = draw(st.sampled_from((1, 1, 2, 4)))
    masks = draw(st.sampled_from([n for n in (1, 2, 4) if streams % n == 0]))
    dense = draw(st.booleans())
    q = make.like(
        "dense" if dense else draw(st.sampled_from(("padded", "rows", "planes"))), F32, (size, heads, tokens, streams)
    )
    if draw(st.booleans()):  # in a cache that has more cells
        whole = make.leaf(dtype, (size, 1, cells + 3, streams))
        k = ops.view(whole, (size, 1, cells, streams), whole.nb[1:], 0)
    else:
        k = make.leaf(dtype, (size, 1, cells, streams))
    weights = make.like("dense" if dense else "rows", F32, (heads, tokens, 1, streams))
    mask = make.leaf(
        F16, (cells, tokens, 1, masks), np.where(make.rng.random(cells * tokens * masks) < 0.3, -np.inf, 0)
    )
    node = ops.lightning_indexer(q, k, weights, mask)
    return Case(node, make.contents, 1e-9, size=0.1 * size**0.5)


@settings(deadline=None, max_examples=100)
@given(case=cases())
def test_lightning_indexer(device: Device, case: Case) -> None:
    keys = case.node.src[1]
    if device.name.startswith("CUDA") and keys is not None and keys.type in SIMPLE:
        case.nmse = (
            1e-3  # keys become F16 there, and products as large as 100 may cancel out; test_tiles_on_a_gpu is closer
        )
    check(case, device)


@pytest.mark.parametrize("dtype", [F16, GGMLType.Q8_0], ids=lambda t: t.name)
def test_tiles_on_a_gpu(cuda_device: Device, dtype: GGMLType) -> None:
    """More cells than a block has, more heads than come at a time, more tokens than blocks; streams that share two masks by turns.
    Cells behind those that are read are NaN."""
    make = Operands(np.random.default_rng(0))
    keys = make.rng.standard_normal((4, 133, 1, 128)).astype(np.float32)
    keys[:, 130:] = np.nan
    whole = make.leaf(dtype, (128, 1, 133, 4), keys)
    k = ops.view(whole, (128, 1, 130, 4), whole.nb[1:], 0)
    q, weights = make.leaf(F32, (128, 70, 3, 4)), make.leaf(F32, (70, 3, 1, 4))
    node = ops.lightning_indexer(q, k, weights, make.leaf(F16, (130, 3, 1, 2)))
    check(Case(node, make.contents, 1e-9 if dtype == F16 else 1e-7), cuda_device)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_tiles_are_cut_between_threads(cpu_device: Device, n_threads: int) -> None:
    make = Operands(np.random.default_rng(n_threads))
    q, k = make.leaf(F32, (128, 16, 40)), make.leaf(F16, (128, 1, 1000))
    mask = make.leaf(F16, (1000, 40), np.zeros(40_000))
    node = ops.lightning_indexer(q, k, make.leaf(F32, (16, 40)), mask)
    check(Case(node, make.contents, 1e-9), cpu_device, n_threads)


def test_elements_that_lie_apart(cpu_device: Device) -> None:
    """ggml asserts that there are none; we compute them."""
    make = Operands(np.random.default_rng(1))
    k, mask = (make.like("transposed", *what) for what in ((F16, (20, 1, 50)), (F16, (50, 3))))
    q, weights = make.like("transposed", F32, (20, 6, 3)), make.like("transposed", F32, (6, 3))
    check(Case(ops.lightning_indexer(q, k, weights, mask), make.contents, 1e-9), cpu_device)


def test_products_below_zero_or_nan_are_nothing(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    q = make.leaf(F32, (2, 2), np.array([1.0, 0.0, np.nan, 1.0]))
    k = make.leaf(F32, (2, 1, 3), np.array([2.0, 0.0, -2.0, 0.0, np.inf, -np.inf]))
    mask = make.leaf(F16, (3,), np.array([0.5, 0.5, -np.inf]))
    node = ops.lightning_indexer(q, k, make.leaf(F32, (2,), np.array([10.0, 100.0])), mask)
    _, result = run(Case(node, make.contents, 0.0), device)
    np.testing.assert_array_equal(result.reshape(-1), [20.5, 0.5, -np.inf])


def with_sources(change: Callable[[list[np.ndarray]], None]) -> Callable[[Tensor], None]:
    def wrong(node: Tensor) -> None:
        read = reference.read
        arrays = [read(s) for s in node.src[:4] if s is not None]
        change(arrays)
        found = iter(arrays)
        reference.read = lambda _: next(found)
        try:
            reference.lightning_indexer(node)
        finally:
            reference.read = read

    return wrong


def no_mask(a: list[np.ndarray]) -> None:
    a[3] = a[3] * 0


def weights_of_another_head(a: list[np.ndarray]) -> None:
    a[2] = a[2][..., ::-1]


def products_below_zero_count(a: list[np.ndarray]) -> None:
    a[0] = -a[0]


def each_mask_for_neighbours(a: list[np.ndarray]) -> None:
    a[3] = np.repeat(a[3], len(a[0]) // len(a[3]), axis=0)


def test_mutants_are_caught() -> None:
    for change in (no_mask, weights_of_another_head, products_below_zero_count, each_mask_for_neighbours):
        assert_caught(cases(F32), mutant_of(Op.LIGHTNING_INDEXER, (reference.refuse, with_sources(change))))
