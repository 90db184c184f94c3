"""FILL, ARANGE, TRI, DIAG."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, FLOATS, Case, Operands, layouts, operands
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference import fill as reference
from pyggml.backend.reference.values import source
from pyggml.errors import ShapeError
from pyggml.ops import Op, TriType
from pyggml.tensor import Tensor

SIZES = (1, 2, 5, 16, 17, 33)


@st.composite
def cases(draw: Callable, op: Op) -> Case:
    make = draw(operands())
    n, rest = draw(st.sampled_from(SIZES)), [draw(st.sampled_from((1, 2, 3))) for _ in range(3)]
    if op == Op.ARANGE:
        start, step = draw(st.integers(-100, 100)) / 4, draw(st.sampled_from((1.0, -1.0, 0.25, 3.0)))
        node = ops.arange(start, start + step * draw(st.sampled_from((1, 2, 16, 17, 5000))), step)
    elif op == Op.FILL:
        a = make.like(draw(layouts(F32)), draw(st.sampled_from(FLOATS)), (n, *rest))
        value = draw(st.sampled_from((0.0, -1.5, 1e-3, float("inf"), float("nan"))))
        node = ops.fill(a, value, draw(st.booleans()))
    elif op == Op.TRI:
        a = make.like(draw(layouts(F32)), draw(st.sampled_from((F32, F32, F16))), (n, n, *rest[1:]))
        node = ops.tri(a, draw(st.sampled_from(TriType)))
    else:
        node = ops.diag(make.like(draw(layouts(F32)), F32, (n, 1, *rest[1:])))
    return Case(node, make.contents, 0.0 if op != Op.ARANGE else 1e-12, peer_nmse=1e-12)


@pytest.mark.parametrize("op", (Op.FILL, Op.ARANGE, Op.TRI, Op.DIAG), ids=lambda op: op.name)
def test_patterns(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=40)
    @given(case=cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@pytest.mark.parametrize("bad", [(0.0, 1.0, 0.0), (0.0, 1.0, -1.0), (0.0, float("nan"), 1.0), (0.0, 1e30, 1e-3)])
def test_a_sequence_without_an_end_is_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ShapeError, match="ARANGE"):
        ops.arange(*bad)


def test_a_long_sequence(device: Device) -> None:
    check(Case(ops.arange(0.0, 1048576.0, 1.0), Operands(np.random.default_rng(0)).contents, 0.0), device)


def the_other_triangle(node: Tensor) -> None:
    a = view_of(source(node, 0))
    view_of(node)[...] = np.where(np.tri(a.shape[3], dtype=bool), a, 0)


def full_rows(node: Tensor) -> None:
    view_of(node)[...] = view_of(source(node, 0))


def without_the_start(node: Tensor) -> None:
    reference.write(node, (node.param_f32(2) * np.arange(node.ne[0])).reshape(1, 1, 1, -1))


def whole_numbers(node: Tensor) -> None:
    reference.write(node, np.full(node.ne[::-1], np.rint(node.param_f32(0))))


def test_mutants_are_caught() -> None:
    assert_caught(cases(Op.ARANGE), mutant_of(Op.ARANGE, (reference.refuse_arange, without_the_start)))
    assert_caught(cases(Op.FILL), mutant_of(Op.FILL, (reference.refuse_fill, whole_numbers)))
    assert_caught(cases(Op.TRI), mutant_of(Op.TRI, (reference.refuse, the_other_triangle)))
    assert_caught(cases(Op.DIAG), mutant_of(Op.DIAG, (reference.refuse, full_rows)))
