"""RMS_NORM."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DENSE_ROWS, F32, Case, Operands, layouts, operands, shapes
from op_check import assert_caught, check, wrong_twin

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.norm import refuse
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


def test_wrong_twins_are_caught() -> None:
    for wrong in (sum_instead_of_mean, eps_outside_the_root):
        assert_caught(rms_norm_cases(), wrong_twin(Op.RMS_NORM, (refuse, wrong)))
