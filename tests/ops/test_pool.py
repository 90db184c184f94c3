"""POOL_1D, POOL_2D: the largest of a window, or the average."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, Case, Operands, layouts, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import pool as reference
from pyggml.errors import ShapeError
from pyggml.ops import Op, PoolOp
from pyggml.tensor import Tensor, pack_params

SIZES = (1, 2, 3, 5, 16, 17, 33, 64, 100)


@st.composite
def cases(draw: Callable, op: Op, kind: PoolOp | None = None) -> Case:
    dtype, make = draw(st.sampled_from((F32, F32, F16))), draw(operands())
    kind = kind if kind is not None else draw(st.sampled_from(tuple(PoolOp)))
    ne = (draw(st.sampled_from(SIZES)), *(draw(st.sampled_from(s)) for s in ((1, 2, 3, 7, 17), (1, 2, 3), (1, 2))))
    a = make.like(draw(st.sampled_from(("dense", draw(layouts(dtype))))), dtype, ne)
    pads = [draw(st.sampled_from((0, 0, 1, 2, 20))) for _ in "ab"]
    windows = [draw(st.sampled_from([k for k in SIZES if k <= n + 2 * p])) for n, p in zip(ne, pads, strict=False)]
    apart = [draw(st.sampled_from((1, 2, 3, windows[i]))) for i in range(2)]
    if op == Op.POOL_1D:
        node = ops.pool_1d(a, kind, windows[0], apart[0], pads[0])
    else:
        node = ops.pool_2d(a, kind, (windows[0], windows[1]), (apart[0], apart[1]), (pads[0], pads[1]))
    # a product that cancels out is near 0
    return Case(node, make.contents, 1e-7 if kind == PoolOp.AVG else 0.0, atol=1e-6 if kind == PoolOp.AVG else 0.0)


@pytest.mark.parametrize("op", [Op.POOL_1D, Op.POOL_2D], ids=lambda op: op.name)
def test_pool(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=100)
    @given(case=cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_rows_are_cut_between_threads(cpu_device: Device, n_threads: int) -> None:
    make = Operands(np.random.default_rng(n_threads), specials=True)
    node = ops.pool_2d(make.leaf(F32, (20_000, 3)), PoolOp.MAX, (3, 2), (1, 1), (1, 1))
    check(Case(node, make.contents, 0.0), cpu_device, n_threads)


def test_what_is_outside_counts_for_nothing(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    x = make.leaf(F32, (4,), np.array([-1.0, -2.0, -3.0, np.nan]))
    found = {}
    for name, node in (
        ("largest", ops.pool_1d(x, PoolOp.MAX, 2, 1, 1)),
        ("average", ops.pool_1d(x, PoolOp.AVG, 2, 1, 1)),
        ("by all", ops.pool_2d(x, PoolOp.AVG, (2, 1), (1, 1), (1, 0))),
    ):
        found[name] = run(Case(node, make.contents, 0.0), device)[1].reshape(-1)
    np.testing.assert_array_equal(found["largest"], [-1, -1, -2, np.nan, np.nan])
    np.testing.assert_array_equal(found["average"], [-1, -1.5, -2.5, np.nan, np.nan])
    np.testing.assert_array_equal(found["by all"], [-0.5, -1.5, -2.5, np.nan, np.nan])


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ((2, 1, 1, 1, 1, 0, 0), "no such way to pool: 2"),
        ((0, 0, 1, 1, 1, 0, 0), "windows of 0 elements"),
        ((0, 1, 1, 0, 1, 0, 0), "0 apart"),
        ((0, 1, 1, 1, 1, 0, -1), "padding -1"),
        ((0, 6, 1, 1, 1, 0, 0), "a window of 6 does not fit into dimension 0"),
        ((0, 1, 2**31 - 1, 1, 1, 0, 0), "does not fit into dimension 1"),
        ((1, 2**16, 2**15, 1, 1, 2**16, 2**15), "fewer than 2"),
    ],
)
def test_windows_that_make_no_sense(params: tuple[int, ...], why: str) -> None:
    with pytest.raises(ShapeError, match=why):
        ops.check(Tensor(F32, (1,), op=Op.POOL_2D, op_params=pack_params("7i", *params), src=(Tensor(F32, (5, 5)),)))


def with_params(change: Callable[[list[int]], object], compute: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """The specification for other parameters of the same result."""

    def wrong(node: Tensor) -> None:
        params = [node.param_i32(i) for i in range(7)]
        change(params)
        right, node.op_params = node.op_params, pack_params("7i", *params)
        try:
            compute(node)
        finally:
            node.op_params = right

    return wrong


def swapped(a: int, b: int) -> Callable[[list[int]], object]:
    def change(p: list[int]) -> None:
        p[a], p[b] = p[b], p[a]

    return change


def test_mutants_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    for change in (swapped(1, 2), swapped(3, 4), swapped(5, 6), lambda p: p.__setitem__(0, 1 - p[0])):
        assert_caught(
            cases(Op.POOL_2D), mutant_of(Op.POOL_2D, (reference.refuse, with_params(change, reference.pool_2d)))
        )
    by_all = with_params(lambda p: None, lambda node: reference._pool(
        node, node.param_i32(0), (node.param_i32(1), 1), (node.param_i32(2), 1), (node.param_i32(3), 0), node.param_i32(1)
    ))  # fmt: skip
    assert_caught(cases(Op.POOL_1D, PoolOp.AVG), mutant_of(Op.POOL_1D, (reference.refuse, by_all)))
    monkeypatch.setattr(reference, "_largest", lambda window: window.max(axis=-1, initial=-3.4028234663852886e38))
    from pyggml.backend.cpu import CPUDevice

    assert_caught(cases(Op.POOL_2D, PoolOp.MAX), CPUDevice())  # a maximum that is NaN wherever one is
