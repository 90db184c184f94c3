"""NORM, RMS_NORM, L2_NORM, GROUP_NORM."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import ANY_LAYOUT, DENSE_ROWS, F32, Case, Operands, layouts, operands, shapes
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.norm import centred, refuse
from pyggml.backend.reference.values import read, source, write
from pyggml.ops import Op
from pyggml.tensor import Tensor


@st.composite
def rms_norm_cases(draw: Callable) -> Case:
    scale, eps = draw(st.sampled_from([1.0, 1e-3, 300.0])), draw(st.sampled_from([0.0, 1e-6, 1e-5, 1.0]))
    # the square of 1e-40 is 0 in F32: without eps a row of it is infinite there, in ggml too
    make = draw(operands(specials=False if eps == 0.0 else None))
    a = make.like(draw(layouts(F32, DENSE_ROWS)), F32, draw(shapes()), scale=scale)
    return Case(ops.rms_norm(a, eps), make.contents, 1e-7)


@st.composite
def row_norm_cases(draw: Callable, op: Op) -> Case:
    scale, eps = draw(st.sampled_from([1.0, 1e-3, 300.0])), draw(st.sampled_from([1e-6, 1e-5, 1.0]))
    make = draw(operands())
    ne = draw(shapes())
    if op == Op.NORM and ne[0] < 5 and eps < 1.0:
        ne = (5, *ne[1:])  # a row that is its own mean is all rounding
    a = make.like(draw(layouts(F32, ANY_LAYOUT)), F32, ne, scale=scale)
    return Case({Op.NORM: ops.norm, Op.L2_NORM: ops.l2_norm}[op](a, eps), make.contents, 1e-7, atol=1e-6)


@st.composite
def group_norm_cases(draw: Callable) -> Case:
    make = draw(operands())
    n0, n1, n2, n3 = draw(shapes())
    a = make.like(
        draw(layouts(F32, DENSE_ROWS)), F32, (max(n0, 5), n1, n2, n3), scale=draw(st.sampled_from([1.0, 300.0]))
    )
    return Case(ops.group_norm(a, draw(st.sampled_from([1, 2, 3, 9])), 1e-5), make.contents, 1e-7, atol=1e-6)


@pytest.mark.parametrize("op", [Op.NORM, Op.L2_NORM], ids=lambda op: op.name)
def test_norms_of_rows(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=40)
    @given(case=row_norm_cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@settings(deadline=None, max_examples=40)
@given(case=group_norm_cases())
def test_group_norm(device: Device, case: Case) -> None:
    check(case, device)


def test_a_short_row_is_as_long_as_eps(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    check(Case(ops.l2_norm(make.leaf(F32, (65, 2), np.full(130, 1e-3)), 0.5), make.contents, 1e-7), device)
    check(Case(ops.l2_norm(make.leaf(F32, (65, 2), np.zeros(130)), 0.5), make.contents, 0.0), device)


@settings(deadline=None, max_examples=60)
@given(case=rms_norm_cases())
def test_rms_norm(device: Device, case: Case) -> None:
    check(case, device)


def test_a_row_of_zeros(device: Device) -> None:
    """eps keeps it finite; without eps it is 0 * inf."""
    make = Operands(np.random.default_rng(0))
    a = make.leaf(F32, (65, 2), np.zeros(130))
    for eps in (1e-5, 0.0):
        check(Case(ops.rms_norm(a, eps), make.contents, 0.0), device)


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    for layout in ("dense", "rows", "planes"):
        assert cpu_device.supports_op(ops.rms_norm(make.like(layout, F32, (576, 3, 2)), 1e-5)), layout


def sum_instead_of_mean(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, x / np.sqrt(np.sum(x * x, -1, keepdims=True) + node.param_f32(0)))


def eps_outside_the_root(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, x / (np.sqrt(np.mean(x * x, -1, keepdims=True)) + node.param_f32(0)))


def eps_is_added(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, x / np.sqrt(np.sum(x * x, -1, keepdims=True) + node.param_f32(0)))


def sample_variance(node: Tensor) -> None:
    x = read(source(node, 0))
    y = x - np.mean(x, -1, keepdims=True)
    write(node, y / np.sqrt(np.sum(y * y, -1, keepdims=True) / max(1, node.ne[0] - 1) + node.param_f32(0)))


def groups_by_turns(node: Tensor) -> None:
    """Channel i belongs to group i % n_groups instead of i // size."""
    x, n = read(source(node, 0)), node.param_i32(0)
    result = np.empty_like(x)
    for group in range(n):
        if x[:, group::n].size:
            result[:, group::n] = centred(x[:, group::n], (1, 2, 3), node.param_f32(1))
    write(node, result)


def test_mutants_are_caught() -> None:
    assert_caught(row_norm_cases(Op.L2_NORM), mutant_of(Op.L2_NORM, (refuse, eps_is_added)))
    assert_caught(row_norm_cases(Op.NORM), mutant_of(Op.NORM, (refuse, sample_variance)))
    assert_caught(group_norm_cases(), mutant_of(Op.GROUP_NORM, (refuse, groups_by_turns)))
    for wrong in (sum_instead_of_mean, eps_outside_the_root):
        assert_caught(rms_norm_cases(), mutant_of(Op.RMS_NORM, (refuse, wrong)))
