"""REPEAT, REPEAT_BACK: tiles, and their sums."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import BF16, F16, F32, I32, Case, layouts, operands
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference.repeat import refuse, refuse_back
from pyggml.backend.reference.values import read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor

TYPES = (F32, F32, F16, BF16, I32, GGMLType.I16, GGMLType.I8, GGMLType.I64)


@st.composite
def cases(draw: Callable, op: Op, types: tuple[GGMLType, ...] = TYPES) -> Case:
    dtype = draw(st.sampled_from(types)) if op == Op.REPEAT else F32
    make = draw(operands(specials=False))
    tile = [draw(st.sampled_from((1, 2, 3, 17, 33))), *(draw(st.sampled_from((1, 2, 3))) for _ in range(3))]
    whole = [n * draw(st.sampled_from((1, 1, 2, 3))) for n in tile]
    a = make.like(draw(layouts(dtype)), dtype, tile if op == Op.REPEAT else whole, scale=50.0)
    if op == Op.REPEAT:
        return Case(ops.repeat(a, *whole), make.contents, 0.0)
    return Case(ops.repeat_back(a, *tile), make.contents, 1e-10)


@settings(deadline=None, max_examples=80)
@given(case=cases(Op.REPEAT))
def test_repeat(device: Device, case: Case) -> None:
    check(case, device)


@settings(deadline=None, max_examples=50)
@given(case=cases(Op.REPEAT_BACK))
def test_repeat_back(device: Device, case: Case) -> None:
    check(case, device)


def each_element_again(node: Tensor) -> None:
    x = view_of(source(node, 0))
    for axis, (n, m) in enumerate(zip(node.ne[::-1], x.shape, strict=True)):
        x = np.repeat(x, n // m, axis=axis)
    view_of(node)[...] = x


def last_tile_only(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, x[tuple(slice(-n, None) for n in node.ne[::-1])])


def test_mutants_are_caught() -> None:
    assert_caught(cases(Op.REPEAT_BACK), mutant_of(Op.REPEAT_BACK, (refuse_back, last_tile_only)))
    assert_caught(cases(Op.REPEAT, (F32,)), mutant_of(Op.REPEAT, (refuse, each_element_again)))
