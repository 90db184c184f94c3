"""DIAG_MASK_INF and DIAG_MASK_ZERO: where the diagonal begins, in place, strides."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, Case, Operands, layouts, operands, shapes
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.diag_mask import refuse
from pyggml.backend.reference.values import read, source, write
from pyggml.errors import ShapeError
from pyggml.ops import Op
from pyggml.tensor import Tensor


@st.composite
def diag_mask_cases(draw: Callable) -> Case:
    make = draw(operands())
    a = make.like(draw(layouts(F32)), F32, draw(shapes()))
    mask = draw(st.sampled_from([ops.diag_mask_inf, ops.diag_mask_zero]))
    n_past = draw(st.sampled_from([0, 1, 5, 16, 31, 300, 2**31 - 1]))
    return Case(mask(a, n_past, inplace=draw(st.booleans())), make.contents, 0.0)


@settings(deadline=None, max_examples=60)
@given(case=diag_mask_cases())
def test_diag_mask(device: Device, case: Case) -> None:
    check(case, device)


def test_what_is_no_mask() -> None:
    make = Operands(np.random.default_rng(0))
    with pytest.raises(ShapeError, match="not F32"):
        ops.diag_mask_inf(make.leaf(F16, (4, 4)), 0)
    with pytest.raises(ShapeError, match="-1 columns"):
        ops.diag_mask_inf(make.leaf(F32, (4, 4)), -1)


def one_too_many(node: Tensor) -> None:
    x = read(source(node, 0))
    row, column = np.ogrid[: x.shape[2], : x.shape[3]]
    write(node, np.where(column >= node.param_i32(0) + row, -np.inf if node.op == Op.DIAG_MASK_INF else 0.0, x))


def test_mutants_are_caught() -> None:
    for op in (Op.DIAG_MASK_INF, Op.DIAG_MASK_ZERO):
        assert_caught(diag_mask_cases(), mutant_of(op, (refuse, one_too_many)))
