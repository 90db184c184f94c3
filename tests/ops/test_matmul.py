"""MUL_MAT: every type of weights, batches, strides."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    BF16,
    DENSE_ROWS,
    EDGE_SIZES,
    F16,
    F32,
    FLOATS,
    SPECIALS,
    WEIGHTS,
    Case,
    Operands,
    layouts,
    operands,
)
from op_check import assert_caught, check, wrong_twin

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.matmul import refuse
from pyggml.backend.reference.values import read, source, write
from pyggml.dtypes import SIZES, GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor

# What rounding the second operand to the first one's partner type may cost.
NMSE = {F32: 1e-7, F16: 1e-6, BF16: 2e-5}


@st.composite
def mul_mat_cases(draw: Callable, dtype: GGMLType) -> Case:
    block = SIZES[dtype].block_size
    # in whole blocks of integers there is no place for infinities
    make = draw(operands(specials=None if dtype in FLOATS else False))
    k = (
        block * draw(st.sampled_from((1, 2, 3, 7, 8, 9, 16, 17, 18) if block == 32 else (1, 2, 3)))
        if block > 1
        else draw(st.sampled_from(EDGE_SIZES))
    )
    n = draw(st.sampled_from((1, 2, 15, 16, 17, 33, 0)))
    m = draw(st.sampled_from((1, 2, 3, 4, 7, 8, 12, 13, 25)))
    batch = draw(st.sampled_from((1, 1, 2))), draw(st.sampled_from((1, 1, 3)))
    ratio = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2)))
    make.special_values = SPECIALS[:3]  # a number too small for F16 becomes 0 in ggml, and inf * 0 a NaN
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, (k, n, *batch), scale=k**-0.5)
    b = make.like(draw(layouts(F32, DENSE_ROWS)), F32, (k, m, batch[0] * ratio[0], batch[1] * ratio[1]))
    node = ops.mul_mat(a, b)
    # A mean over few elements strays: one dot product of 32 may be off by four times what is usual.
    nmse = NMSE.get(dtype, 5e-4) * (1 + 8 / max(1, node.nelements))
    return Case(node, make.contents, nmse, atol=1e-7, size=1.0)  # rows of length 1


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.name)
def test_mul_mat(device: Device, dtype: GGMLType) -> None:
    @settings(deadline=None, max_examples=40)
    @given(case=mul_mat_cases(dtype))
    def run(case: Case) -> None:
        check(case, device)

    run()


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.name)
def test_cpu_supports_what_models_need(cpu_device: Device, dtype: GGMLType) -> None:
    """Weights, and (F16, F32) a cache that is multiplied head by head."""
    make = Operands(np.random.default_rng(0))
    k = 768 if SIZES[dtype].block_size == 256 else 576
    a = make.leaf(dtype, (k, 40))
    for b in (make.leaf(F32, (k, 1)), make.leaf(F32, (k, 7, 2)), make.like("rows", F32, (k, 7))):
        assert cpu_device.supports_op(ops.mul_mat(a, b))
    if dtype in (F32, F16):
        k, q = make.like("planes", dtype, (64, 256, 3)), make.like("planes", F32, (64, 5, 9))
        assert cpu_device.supports_op(ops.mul_mat(k, q))


def tiled_batch(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    a = np.tile(a, (b.shape[0] // a.shape[0], b.shape[1] // a.shape[1], 1, 1))
    write(node, b @ a.swapaxes(2, 3))


def last_element_forgotten(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    b[..., -1] = 0
    for axis in (0, 1):
        a = np.repeat(a, b.shape[axis] // a.shape[axis], axis=axis)
    write(node, b @ a.swapaxes(2, 3))


@pytest.mark.parametrize("dtype", [F32, GGMLType.Q4_1], ids=lambda dtype: dtype.name)
def test_wrong_twins_are_caught(dtype: GGMLType) -> None:
    for wrong in (tiled_batch, last_element_forgotten):
        assert_caught(mul_mat_cases(dtype), wrong_twin(Op.MUL_MAT, (refuse, wrong)))
