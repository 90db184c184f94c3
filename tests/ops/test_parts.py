"""SET, ACC: a part of a tensor replaced or added to, in place or not."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, I32, SIZES, Case, Operands, layouts, operands
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference.parts import part_of, refuse_acc, refuse_set
from pyggml.backend.reference.values import source
from pyggml.errors import ShapeError
from pyggml.ops import Op
from pyggml.tensor import Tensor


@st.composite
def cases(draw: Callable, op: Op) -> Case:
    """The part is a box within the whole, or rows that lie as another shape has them."""
    dtype = draw(st.sampled_from((F32, F32, I32, F16))) if op == Op.SET else F32
    make = draw(operands(specials=False))
    ne = (draw(st.sampled_from((1, 5, 17, 33, 64))), *(draw(st.sampled_from((1, 2, 3, 5))) for _ in range(3)))
    corner = [draw(st.integers(0, n - 1)) for n in ne]
    box = [draw(st.integers(1, n - c)) for n, c in zip(ne, corner, strict=True)]
    a = make.leaf(dtype, ne, scale=50.0)
    b = make.like(draw(layouts(dtype)), dtype, box, scale=50.0)
    strides, offset = a.nb, sum(c * nb for c, nb in zip(corner, a.nb, strict=True))
    if draw(st.booleans()):
        strides, offset = (
            Tensor(dtype, box).nb,
            SIZES[dtype].type_size * draw(st.integers(0, a.nelements - b.nelements)),
        )
    build = ops.set_part if op == Op.SET else ops.acc
    return Case(build(a, b, strides, offset, draw(st.booleans())), make.contents, 0.0)


@pytest.mark.parametrize("op", (Op.SET, Op.ACC), ids=lambda op: op.name)
def test_parts(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=60)
    @given(case=cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


def test_a_part_outside_is_refused(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    a, b = make.leaf(F32, (8, 4)), make.leaf(F32, (8, 2))
    for strides, offset in ((a.nb, 68), (a.nb, -4), ((4, 128, 128, 128), 0), ((4, -32, 32, 32), 64)):
        with pytest.raises(ShapeError, match=r"SET: (the part ends|negative)"):
            ops.set_part(a, b, strides, offset)
    upon_itself = ops.acc(a, b, (4, 16, 32, 32), 0)
    assert not cpu_device.supports_op(upon_itself)


def whole_forgotten(node: Tensor) -> None:
    part_of(node)[...] = view_of(source(node, 1))
    view_of(node)[..., :1] = 0


def set_not_added(node: Tensor) -> None:
    part_of(node)[...] = view_of(source(node, 1))


def test_mutants_are_caught() -> None:
    assert_caught(cases(Op.SET), mutant_of(Op.SET, (refuse_set, whole_forgotten)))
    assert_caught(cases(Op.ACC), mutant_of(Op.ACC, (refuse_acc, set_not_added)))
