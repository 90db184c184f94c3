"""PAD, PAD_REFLECT_1D, ROLL: what lies around a tensor, and a tensor turned round."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, I64, Case, layouts, operands
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference.pad import refuse
from pyggml.backend.reference.values import source
from pyggml.ops import Op
from pyggml.tensor import Tensor

OPS = (Op.PAD, Op.PAD_REFLECT_1D, Op.ROLL)


@st.composite
def cases(draw: Callable, op: Op) -> Case:
    dtype = draw(st.sampled_from((F32, F32, F32, F16, I64)))
    make = draw(operands())
    make.specials = make.specials and dtype != I64
    ne = (draw(st.sampled_from((1, 2, 5, 17, 33, 257))), *(draw(st.sampled_from((1, 2, 3))) for _ in range(3)))
    a = make.like(draw(layouts(dtype)), dtype, ne, scale=50.0)
    if op == Op.ROLL:
        node = ops.roll(a, *(draw(st.integers(1 - n, n - 1)) for n in ne))
    elif op == Op.PAD_REFLECT_1D:
        node = ops.pad_reflect_1d(a, *(draw(st.integers(0, ne[0] - 1)) for _ in "ab"))
    else:
        before, behind = ([draw(st.sampled_from((0, 0, 1, 2, 3))) for _ in range(4)] for _ in "ab")
        node = ops.pad(a, before, behind, draw(st.booleans()))
    return Case(node, make.contents, 0.0)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_surroundings(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=50)
    @given(case=cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


def mirrored_with_the_edge(node: Tensor) -> None:
    pads = [(0, 0)] * 3 + [(node.param_i32(0), node.param_i32(1))]
    view_of(node)[...] = np.pad(view_of(source(node, 0)), pads, mode="symmetric")


def rolled_the_other_way(node: Tensor) -> None:
    shifts = tuple(-node.param_i32(i) for i in reversed(range(4)))
    view_of(node)[...] = np.roll(view_of(source(node, 0)), shifts, axis=(0, 1, 2, 3))


def never_circular(node: Tensor) -> None:
    pads = [(node.param_i32(2 * i), node.param_i32(2 * i + 1)) for i in reversed(range(4))]
    view_of(node)[...] = np.pad(view_of(source(node, 0)), pads)


def test_mutants_are_caught() -> None:
    assert_caught(cases(Op.PAD), mutant_of(Op.PAD, (refuse, never_circular)))
    assert_caught(cases(Op.PAD_REFLECT_1D), mutant_of(Op.PAD_REFLECT_1D, (refuse, mirrored_with_the_edge)))
    assert_caught(cases(Op.ROLL), mutant_of(Op.ROLL, (refuse, rolled_the_other_way)))
