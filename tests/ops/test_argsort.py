"""ARGSORT, TOP_K: short rows and long ones, equal values, -0, infinities and NaNs."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F32, Case, Operands, layouts, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.reference.argsort import refuse
from pyggml.backend.reference.values import read, source
from pyggml.kernels.cpu.argsort import SHORT
from pyggml.ops import Op, SortOrder
from pyggml.tensor import Tensor

LENGTHS = (1, 2, 3, 7, 33, SHORT, SHORT + 1, 255, 256, 257, 1000)


@st.composite
def argsort_cases(draw: Callable, all_different: bool, op: Op = Op.ARGSORT) -> Case:
    make, n = draw(operands()), draw(st.sampled_from(LENGTHS))
    ne = (n, draw(st.sampled_from((1, 2, 5))), draw(st.sampled_from((1, 3))))
    if all_different:
        make.specials = False
        whole = make.rng.permuted(np.tile(np.arange(n) - n / 3, (ne[1] * ne[2], 1)), axis=1)
        a = make.leaf(F32, ne, whole)
    else:
        a = make.like(draw(layouts(F32)), F32, ne)
        if draw(st.booleans()):  # many equal ones
            owner = a.view_src or a
            few = make.rng.choice(np.array([-1.5, -0.0, 0.0, 1e-40, 2.0, np.inf, np.nan], np.float32), owner.nelements)
            make.contents[id(owner)] = (owner, few.tobytes())
    if op == Op.TOP_K:
        return Case(ops.top_k(a, draw(st.sampled_from(sorted({1, min(2, n), n // 2 or 1, n})))), make.contents, 0.0)
    return Case(ops.argsort(a, draw(st.sampled_from(SortOrder))), make.contents, 0.0)


@settings(deadline=None, max_examples=60)
@given(case=argsort_cases(all_different=True))
def test_argsort(device: Device, case: Case) -> None:
    check(case, device)


@pytest.mark.parametrize("op", [Op.ARGSORT, Op.TOP_K], ids=lambda op: op.name)
def test_equal_values_stay_in_order(cpu_device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=80)
    @given(case=argsort_cases(all_different=False, op=op))
    def attempt(case: Case) -> None:
        check(case, cpu_device)

    attempt()


@settings(deadline=None, max_examples=40)
@given(case=argsort_cases(all_different=True, op=Op.TOP_K))
def test_top_k(device: Device, case: Case) -> None:
    """The same elements as the definition says; ggml leaves their order open."""
    _, expected = run(case, ReferenceDevice(), guarded=False)
    _, actual = run(case, device)
    assert (np.sort(expected) == np.sort(actual)).all()


def test_argsort_top_k_is_a_view(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    node = ops.argsort_top_k(make.leaf(F32, (8, 3)), 2)
    assert node.ne == (2, 3, 1, 1) and node.nb[1] == 32 and node.view_src is node.src[0]
    assert node.view_src is not None and node.view_src.op == Op.ARGSORT


def the_other_way(node: Tensor) -> None:
    x = read(source(node, 0))
    view_of(node)[...] = np.argsort(x, axis=-1, kind="stable")[..., ::-1]


def ranks(node: Tensor) -> None:
    x = read(source(node, 0)) * (-1 if node.param_i32(0) else 1)
    view_of(node)[...] = np.argsort(np.argsort(x, axis=-1), axis=-1)


def test_mutants_are_caught() -> None:
    for wrong in (the_other_way, ranks):
        assert_caught(argsort_cases(all_different=True), mutant_of(Op.ARGSORT, (refuse, wrong)))
