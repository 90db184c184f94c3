"""SOLVE_TRI."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F32, Case, Operands, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.solve_tri import refuse
from pyggml.backend.reference.values import read, source, write
from pyggml.ops import Op
from pyggml.tensor import Tensor


@st.composite
def solve_cases(draw: Callable) -> Case:
    """Diagonals that are large enough for the system to forgive rounding; above them there is what must not matter."""
    make = draw(operands(specials=False))
    n, k = draw(st.sampled_from((1, 2, 7, 16, 33, 64))), draw(st.sampled_from((1, 3, 15, 16, 17, 33, 64)))
    batch = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2)))
    a = make.rng.uniform(-1, 1, (*batch[::-1], n, n)) / n**0.5
    a[..., np.arange(n), np.arange(n)] = make.rng.uniform(1, 2, (*batch[::-1], n)) * make.rng.choice([-1, 1], n)
    node = ops.solve_tri(make.leaf(F32, (n, n, *batch), a), make.leaf(F32, (k, n, *batch)))
    return Case(node, make.contents, 1e-6, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(case=solve_cases())
def test_solve_tri(device: Device, case: Case) -> None:
    check(case, device)


def test_the_product_is_the_right_hand_side(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    a = np.tril(make.rng.uniform(-0.3, 0.3, (24, 24))) + 2 * np.eye(24)
    b = make.rng.standard_normal((24, 19))
    node = ops.solve_tri(make.leaf(F32, (24, 24), a), make.leaf(F32, (19, 24), b))
    _, x = run(Case(node, make.contents, 0.0), device)
    np.testing.assert_allclose(a @ x[0, 0], b, atol=1e-5)


def whole_matrix(node: Tensor) -> None:
    write(node, np.linalg.solve(read(source(node, 0)), read(source(node, 1))))


def upper(node: Tensor) -> None:
    write(node, np.linalg.solve(np.tril(read(source(node, 0))).swapaxes(2, 3), read(source(node, 1))))


def test_mutants_are_caught() -> None:
    for wrong in (whole_matrix, upper):
        assert_caught(solve_cases(), mutant_of(Op.SOLVE_TRI, (refuse, wrong)))
