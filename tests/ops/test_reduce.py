"""SUM, SUM_ROWS, MEAN, CUMSUM, ARGMAX, COUNT_EQUAL."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    ANY_LAYOUT,
    DENSE_ROWS,
    F16,
    F32,
    FLOATS,
    I32,
    ROUNDING,
    Case,
    Operands,
    layouts,
    operands,
    shapes,
)
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference.reduce import refuse, refuse_count
from pyggml.backend.reference.values import read, source, write
from pyggml.ops import Op
from pyggml.tensor import Tensor

BUILDERS = {Op.SUM: ops.sum_all, Op.SUM_ROWS: ops.sum_rows, Op.MEAN: ops.mean, Op.CUMSUM: ops.cumsum}


@st.composite
def sum_cases(draw: Callable, op: Op) -> Case:
    make = draw(operands())
    dtype = draw(st.sampled_from(FLOATS)) if op == Op.SUM else F32
    ne = draw(shapes())
    if draw(st.integers(0, 5)) == 0:
        ne = (draw(st.sampled_from((4095, 4096, 4097, 9001))), draw(st.sampled_from((1, 2))), 1, 1)
    if 0 in ne:
        ne = (1, 1, 1, 1)  # ggml has no sum of nothing
    a = make.like(draw(layouts(dtype, ANY_LAYOUT if dtype == F32 else DENSE_ROWS)), dtype, ne)
    # what cancels out is held against what it is made of
    return Case(BUILDERS[op](a), make.contents, ROUNDING[dtype], atol=1e-6, size=a.ne[0] ** 0.5)


@st.composite
def argmax_cases(draw: Callable) -> Case:
    """Few different values, so that the largest comes several times."""
    make = draw(operands(specials=False))
    n0, n1, _, _ = draw(shapes())
    n = max(n0, 1) * n1
    values = make.rng.integers(0, draw(st.sampled_from([1, 5, 1000])), n).astype(np.float32)
    what = draw(st.sampled_from(["numbers", "numbers", "infinities", "NaNs", "nothing but NaNs"]))
    if n and what != "numbers":
        where = slice(None) if "but" in what else make.rng.integers(0, n, max(1, n // 40))
        values[where] = np.nan if "NaN" in what else make.rng.choice(np.float32([np.inf, -np.inf]))
    a = make.leaf(F32, (max(n0, 1), n1), values)
    if draw(st.booleans()):  # rows with something between them
        a = ops.view(a, (max(1, n0 - 1), n1), (a.nb[1],), 0)
    return Case(ops.argmax(a), make.contents, 0.0)


@st.composite
def count_cases(draw: Callable) -> Case:
    make = draw(operands(specials=False))
    n0, n1, n2, n3 = draw(shapes())
    if draw(st.integers(0, 5)) == 0:
        n0, n1, n2, n3 = draw(st.sampled_from((4095, 4097, 9001))), 2, 1, 1
    ne = (n0, n1, 1, 1) if draw(st.booleans()) else (n0, n1, n2, n3)
    a, b = (make.leaf(I32, ne, make.rng.integers(-2, 2, np.prod(ne))) for _ in range(2))
    if draw(st.booleans()):
        a, b = ops.permute(a, 1, 0, 2, 3), ops.permute(b, 1, 0, 2, 3)
    return Case(ops.count_equal(a, b), make.contents, 0.0)


@pytest.mark.parametrize("op", list(BUILDERS), ids=lambda op: op.name)
def test_sums(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=40)
    @given(case=sum_cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@settings(deadline=None, max_examples=80)
@given(case=argmax_cases())
def test_argmax(device: Device, case: Case) -> None:
    check(case, device)


@settings(deadline=None, max_examples=40)
@given(case=count_cases())
def test_count_equal(device: Device, case: Case) -> None:
    check(case, device)


def test_of_equal_elements_the_last(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    rows = [[3, 1, 3, 2], [0, 0, 0, 0], [np.nan, 1, 1, 0], [5, np.nan, 1, 0], [5, 2, 1, np.nan], [-np.inf] * 4]
    node = ops.argmax(make.leaf(F32, (4, 6), np.array(rows)))
    _, values = run(Case(node, make.contents, 0.0), device)
    assert values.reshape(-1).tolist() == [2, 3, 2, 2, 0, 3]


def test_a_long_sum_loses_nothing(cpu_device: Device) -> None:
    """A million ones behind 2^24: F32 added one by one would stay there; lanes lose what shares one with the large number."""
    make = Operands(np.random.default_rng(0))
    x = np.ones(1 << 20, np.float32)
    x[0] = 2.0**24
    for build in (ops.sum_all, ops.sum_rows, ops.cumsum):
        _, values = run(Case(build(make.leaf(F32, (1 << 20,), x)), make.contents, 0.0), cpu_device)
        assert abs(values.reshape(-1)[-1] - (2.0**24 + 2.0**20 - 1)) <= 64.0, build.__name__


def test_types_that_are_not_summed_are_refused(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    half, whole = make.leaf(F16, (8, 2)), make.leaf(I32, (8, 2), np.arange(16))
    for node in (ops.sum_rows(half), ops.mean(half), ops.sum_all(whole), ops.argmax(half), ops.count_equal(half, half)):
        assert not cpu_device.supports_op(node), Op(node.op).name


def without_the_last(node: Tensor) -> None:
    write(node, read(source(node, 0))[..., :-1].sum(axis=-1, keepdims=True))


def mean_of_all(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, np.broadcast_to(x.mean(), (*x.shape[:3], 1)))


def sum_of_the_first_plane(node: Tensor) -> None:
    write(node, read(source(node, 0))[:1, :1].sum().reshape(1, 1, 1, 1))


def sum_before_this_one(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, x.cumsum(axis=-1) - x)


def first_of_the_largest(node: Tensor) -> None:
    view_of(node)[0, 0, 0] = np.nan_to_num(read(source(node, 0))[0, 0], nan=-np.inf).argmax(axis=-1)


def count_unequal(node: Tensor) -> None:
    view_of(node)[...] = np.count_nonzero(view_of(source(node, 0)) != view_of(source(node, 1)))


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        (Op.SUM, sum_of_the_first_plane),
        (Op.SUM_ROWS, without_the_last),
        (Op.MEAN, mean_of_all),
        (Op.CUMSUM, sum_before_this_one),
    ],
)
def test_mutants_are_caught(op: Op, wrong: Callable[[Tensor], None]) -> None:
    assert_caught(sum_cases(op), mutant_of(op, (refuse, wrong)))


def test_wrong_counts_are_caught() -> None:
    assert_caught(argmax_cases(), mutant_of(Op.ARGMAX, (refuse, first_of_the_largest)))
    assert_caught(count_cases(), mutant_of(Op.COUNT_EQUAL, (refuse_count, count_unequal)))
