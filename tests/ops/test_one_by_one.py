"""Nodes that are asked to compute each token as if it were alone (ops/one_by_one.py): every bit is the same, however many are computed at once."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DENSE_ROWS, F16, F32, FLOATS, I32, SIZES, WEIGHTS, Case, Operands, layouts, operands
from op_check import run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.dtypes import GGMLType
from pyggml.kernels.cpu.formats import CONVERTIBLE
from pyggml.tensor import Tensor

COLUMNS = (2, 3, 4, 5, 7, 8, 9, 13, 17, 33)


def of(make: Operands, node: Tensor, asked: bool = True) -> Case:
    if asked:
        ops.ask_one_by_one([node])
    return Case(node, make.contents, 0.0, atol=0.0)


def some(n: int) -> list[int]:
    """Of n columns those that are computed alone too: of a group of four each has another place."""
    return sorted({0, 1, n // 2, n - 2, n - 1})


def bits(case: Case, device: Device) -> np.ndarray:
    """(batches of dimension 3, of 2, columns, rows)"""
    return run(case, device)[1]


@st.composite
def products(draw: Callable, dtype: GGMLType) -> tuple[Operands, Tensor, Tensor]:
    """(what is in them, weights, activations of several columns)"""
    make, block = draw(operands(specials=False)), SIZES[dtype].block_size
    k = block * draw(st.sampled_from((1, 3, 31, 64, 97, 256, 257) if block == 1 else (1, 2, 3, 7, 9, 18)))
    n, batch = draw(st.sampled_from((1, 15, 16, 33))), draw(st.sampled_from((1, 2)))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, (k, n, batch), scale=k**-0.5)
    return make, a, make.like(draw(layouts(F32, DENSE_ROWS)), F32, (k, draw(st.sampled_from(COLUMNS)), 2 * batch))


def column(t: Tensor, j: int) -> Tensor:
    """Of dimension 1 one element."""
    return ops.view(t, (t.ne[0], 1, t.ne[2], t.ne[3]), t.nb[1:], j * t.nb[1])


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.name)
def test_columns_of_products(cpu_device: Device, dtype: GGMLType) -> None:
    @settings(deadline=None, max_examples=8)
    @given(products(dtype))
    def attempt(drawn: tuple[Operands, Tensor, Tensor]) -> None:
        make, a, b = drawn
        found = bits(of(make, ops.mul_mat(a, b)), cpu_device)
        for j in some(b.ne[1]):
            alone = bits(of(make, ops.mul_mat(a, column(b, j)), asked=False), cpu_device)
            np.testing.assert_array_equal(found[:, :, j : j + 1], alone)

    attempt()


@pytest.mark.parametrize("dtype", [F32, F16, GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.Q6_K], ids=lambda t: t.name)
def test_tokens_of_experts(cpu_device: Device, dtype: GGMLType) -> None:
    @settings(deadline=None, max_examples=8)
    @given(operands(specials=False), st.sampled_from(((1, 1), (1, 2), (2, 3), (3, 8))), st.sampled_from(COLUMNS))
    def attempt(make: Operands, choice: tuple[int, int], tokens: int) -> None:
        used, experts = choice
        k = 2 * max(SIZES[dtype].block_size, 32)
        a, b = make.leaf(dtype, (k, 17, experts), scale=k**-0.5), make.leaf(F32, (k, 1, tokens))
        ids = make.leaf(I32, (used, tokens), make.rng.integers(0, experts, (tokens, used)))
        found = bits(of(make, ops.mul_mat_id(a, b, ids)), cpu_device)
        for t in some(tokens):
            x = ops.view(b, (k, 1, 1), b.nb[1:3], t * b.nb[2])
            i = ops.view(ids, (used, 1), ids.nb[1:2], t * ids.nb[1])
            alone = bits(of(make, ops.mul_mat_id(a, x, i), asked=False), cpu_device)
            np.testing.assert_array_equal(found[:, t : t + 1], alone)

    attempt()


@pytest.mark.parametrize("dtype", [F16, F32, *(t for t in CONVERTIBLE if t not in FLOATS)], ids=lambda t: t.name)
def test_tokens_of_attention(cpu_device: Device, dtype: GGMLType) -> None:
    head = max(SIZES[dtype].block_size, 64)

    @settings(deadline=None, max_examples=6)
    @given(
        operands(specials=False), st.sampled_from((1, 65, 130)), st.sampled_from(COLUMNS),
        st.sampled_from(((1, 1), (1, 3), (2, 8))), st.booleans(),
    )  # fmt: skip
    def attempt(make: Operands, n_kv: int, tokens: int, heads: tuple[int, int], sunk: bool) -> None:
        q = make.leaf(F32, (head, tokens, heads[1]))
        k, v = (make.leaf(dtype, (head, n_kv, heads[0])) for _ in range(2))
        hidden = np.where(make.rng.random((tokens, n_kv)) < 0.4, -np.inf, 0.0)
        hidden[:, 0] = 0.0
        mask = make.leaf(F16, (n_kv, tokens), hidden)
        sinks = make.leaf(F32, (heads[1],)) if sunk else None

        def node(q: Tensor, mask: Tensor) -> Tensor:
            return ops.flash_attn_ext(q, k, v, mask, head**-0.5, sinks=sinks)

        found = bits(of(make, node(q, mask)), cpu_device)
        for t in some(tokens):
            alone = bits(of(make, node(column(q, t), column(mask, t)), asked=False), cpu_device)
            np.testing.assert_array_equal(found[:, t : t + 1], alone)

    attempt()


@pytest.mark.parametrize("dtype", [F16, GGMLType.Q4_0, GGMLType.Q6_K], ids=lambda t: t.name)
def test_tiles_round_otherwise(cpu_device: Device, dtype: GGMLType) -> None:
    """Without being asked several columns have other bits: the tests above would see it."""
    make = Operands(np.random.default_rng(0))
    a, b = make.leaf(dtype, (512, 64), scale=0.05), make.leaf(F32, (512, 13))
    plain, asked = (bits(of(make, ops.mul_mat(a, b), asked), cpu_device) for asked in (False, True))
    assert (plain != asked).any()
    np.testing.assert_allclose(plain, asked, atol=1e-4)


def test_it_is_asked_of_products_and_attention_alone() -> None:
    a, b = Tensor(F32, (32, 8)), Tensor(F32, (32, 3))
    product, total = ops.mul_mat(a, b), ops.add(b, b)
    before = product.op_params, total.op_params
    assert not ops.is_one_by_one(product) and not ops.is_one_by_one(total)
    ops.ask_one_by_one([product, total])
    assert ops.is_one_by_one(product) and not ops.is_one_by_one(total)
    assert product.op_params[:60] == before[0][:60] and total.op_params == before[1]
