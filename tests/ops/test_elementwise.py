"""ADD SUB MUL DIV ADD1."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    ANY_LAYOUT,
    BF16,
    DENSE_ROWS,
    F16,
    F32,
    ROUNDING,
    Case,
    Operands,
    divisors,
    layouts,
    operands,
    shapes,
)
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference.elementwise import refuse, refuse_sum
from pyggml.backend.reference.values import read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor

BINARY = {Op.ADD: ops.add, Op.SUB: ops.sub, Op.MUL: ops.mul, Op.DIV: ops.div}
TYPES = [(F32, F32), (F16, F16), (BF16, BF16), (F16, F32), (BF16, F32)]


@st.composite
def binary_cases(draw: Callable, op: Op | None = None) -> Case:
    make = draw(operands())
    type_a, type_b = draw(st.sampled_from(TYPES))
    ne = draw(shapes())
    small = [draw(st.sampled_from(sorted({n, 1, *divisors(n)}))) if n else 0 for n in ne]
    a = make.like(draw(layouts(type_a)), type_a, ne)
    b = make.like(draw(layouts(type_b)), type_b, small)
    node = BINARY[op or draw(st.sampled_from(list(BINARY)))](a, b)
    return Case(node, make.contents, ROUNDING[type_a])


BLOCK_TYPES = (GGMLType.Q4_0, GGMLType.Q8_0)


@st.composite
def sum_cases(draw: Callable, op: Op) -> Case:
    """ADD of blocks and F32, ADD1 of anything and one number, and sums of half floats in F32 (ggml_add_cast)."""
    make = draw(operands(specials=False))
    dtype = draw(st.sampled_from((*BLOCK_TYPES, F16, BF16) if op == Op.ADD else (F32, F16, BF16, *BLOCK_TYPES)))
    blocks = dtype in BLOCK_TYPES
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, draw(shapes(dtype)))
    if op == Op.ADD1:
        node = ops.add1(a, make.leaf(F32 if blocks else draw(st.sampled_from((F32, dtype))), (1,)))
    else:
        node = ops.add(a, make.like(draw(layouts(F32, DENSE_ROWS if blocks else ANY_LAYOUT)), F32, a.ne))
        if not blocks:
            node = Tensor(F32, a.ne, op=Op.ADD, src=node.src)
    # what is added and what it comes to are rounded another way by ggml's vectorised code
    return Case(node, make.contents, ROUNDING.get(dtype, 0.0), peer_nmse=1e-4 if blocks else 0.0)


@pytest.mark.parametrize("op", (Op.ADD, Op.ADD1), ids=lambda op: op.name)
def test_sums(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=30)
    @given(case=sum_cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@settings(deadline=None, max_examples=60)
@given(case=binary_cases())
def test_binary(device: Device, case: Case) -> None:
    check(case, device)


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    """What a model may ask for: F32 everywhere, a bias or a gain of one row."""
    make = Operands(np.random.default_rng(0))
    a, row = make.leaf(F32, (576, 3)), make.leaf(F32, (576,))
    for builder in BINARY.values():
        assert cpu_device.supports_op(builder(a, row))
        assert cpu_device.supports_op(builder(a, a))


def neighbours_instead_of_tiles(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    for axis, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)):
        b = np.repeat(b, n // m, axis)
    write(node, a + b)


def upside_down(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    write(node, np.tile(b, [n // m for n, m in zip(a.shape, b.shape, strict=True)]) / a)


def not_added(node: Tensor) -> None:
    write(node, read(source(node, 0)))


def test_mutants_are_caught() -> None:
    assert_caught(sum_cases(Op.ADD), mutant_of(Op.ADD, (refuse_sum, not_added)))
    assert_caught(sum_cases(Op.ADD1), mutant_of(Op.ADD1, (refuse_sum, not_added)))
    assert_caught(binary_cases(Op.ADD), mutant_of(Op.ADD, (refuse, neighbours_instead_of_tiles)))
    assert_caught(binary_cases(Op.DIV), mutant_of(Op.DIV, (refuse, upside_down)))
