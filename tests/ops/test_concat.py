"""CONCAT: of all types, in all dimensions."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import BF16, F16, F32, I32, I64, SIZES, Case, layouts, operands
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference.concat import refuse
from pyggml.backend.reference.values import source
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor

TYPES = (F32, F32, F16, BF16, I32, I64, GGMLType.I8, GGMLType.I16, GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.Q4_K)


@st.composite
def concat_cases(draw: Callable, types: tuple[GGMLType, ...] = TYPES) -> Case:
    dtype, dim = draw(st.sampled_from(types)), draw(st.integers(0, 3))
    make = draw(operands(specials=False))
    block = SIZES[dtype].block_size
    ne = [block * draw(st.sampled_from((1, 2, 3, 9, 33) if block == 1 else (1, 2, 3)))]
    ne += [draw(st.sampled_from((1, 2, 3, 5))) for _ in range(3)]
    other = list(ne)
    other[dim] = draw(st.sampled_from((1, 2, 7, 0))) * (block if dim == 0 else 1)
    a, b = (make.like(draw(layouts(dtype)), dtype, n, scale=50.0) for n in (ne, other))
    return Case(ops.concat(a, b, dim), make.contents, 0.0)


@settings(deadline=None, max_examples=100)
@given(case=concat_cases())
def test_concat(device: Device, case: Case) -> None:
    check(case, device)


def the_other_way_round(node: Tensor) -> None:
    parts = [view_of(source(node, i)) for i in (1, 0)]
    view_of(node)[...] = np.concatenate(parts, axis=3 - node.param_i32(0))


def test_mutants_are_caught() -> None:
    assert_caught(concat_cases((F32,)), mutant_of(Op.CONCAT, (refuse, the_other_way_round)))
