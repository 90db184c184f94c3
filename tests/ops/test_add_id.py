"""ADD_ID: rows of a table by number."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DENSE_ROWS, EDGE_SIZES, F32, I32, SMALL_SIZES, Case, Operands, layouts, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.reference.add_id import refuse
from pyggml.backend.reference.values import read, source, write
from pyggml.errors import ComputeError
from pyggml.ops import Op
from pyggml.tensor import Tensor


@st.composite
def add_id_cases(draw: Callable) -> Case:
    make, n = draw(operands()), draw(st.sampled_from(EDGE_SIZES))
    used, tokens, rows = (draw(st.sampled_from(SMALL_SIZES)) for _ in range(3))
    a = make.like(draw(layouts(F32, DENSE_ROWS)), F32, (n, used, tokens))
    b = make.like(draw(layouts(F32, ("dense", "padded"))), F32, (n, rows))
    whole = make.leaf(I32, (used + 1, tokens), make.rng.integers(0, rows, (tokens, used + 1)))
    return Case(ops.add_id(a, b, ops.view(whole, (used, tokens), (whole.nb[1],), 4)), make.contents, 1e-14)


@settings(deadline=None, max_examples=60)
@given(case=add_id_cases())
def test_add_id(device: Device, case: Case) -> None:
    check(case, device)


@pytest.mark.parametrize("bad", [-1, 5])
@pytest.mark.parametrize("which", ["reference", "cpu"])
def test_a_row_out_of_range_is_named(request: pytest.FixtureRequest, which: str, bad: int) -> None:
    device: Device = ReferenceDevice() if which == "reference" else request.getfixturevalue("cpu_device")
    make = Operands(np.random.default_rng(0))
    ids = make.leaf(I32, (2, 3), np.array([0, 4, 1, 2, 3, bad]))
    node = ops.add_id(make.leaf(F32, (33, 2, 3)), make.leaf(F32, (33, 5)), ids, name="bias")
    with pytest.raises(ComputeError, match=rf"ADD_ID .*bias.*{bad}\b.*\b5\b"):
        run(Case(node, make.contents, 0.0), device)


def rows_in_order(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))[0, 0]
    write(node, a + b[np.arange(a.shape[2]) % len(b)])


def test_a_mutant_is_caught() -> None:
    assert_caught(add_id_cases(), mutant_of(Op.ADD_ID, (refuse, rows_in_order)))
