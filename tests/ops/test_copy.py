"""CPY CONT DUP: into other shapes, types and strides."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    ANY_LAYOUT,
    BLOCKS,
    DENSE_ROWS,
    F16,
    F32,
    FLOATS,
    I32,
    READ_ONLY,
    SIZES,
    Case,
    Operands,
    layouts,
    operands,
    shapes,
)
from op_check import assert_caught, check, mutant_of

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.reference.copy import refuse
from pyggml.backend.reference.values import encode, read, source
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.ops import Op
from pyggml.tensor import Tensor

QUANTISED = tuple(t for t in BLOCKS if t not in (GGMLType.Q8_1, GGMLType.Q8_K))
PAIRS = [(a, b) for a in FLOATS for b in FLOATS] + [(F32, I32), (I32, F32), (I32, I32)]
PAIRS += [(a, b) for a in FLOATS for b in QUANTISED] + [(q, F32) for q in QUANTISED] + [(q, q) for q in QUANTISED]
PAIRS += [(READ_ONLY[0], F32), *((q, q) for q in READ_ONLY)]  # GET_ROWS reads them all


@st.composite
def cpy_cases(draw: Callable, pairs: list[tuple[GGMLType, GGMLType]] = PAIRS) -> Case:
    from_type, to_type = draw(st.sampled_from(pairs))
    blocks = max(SIZES[from_type].block_size, SIZES[to_type].block_size) > 1
    make = draw(operands(specials=False if blocks or I32 in (from_type, to_type) else None))
    ne = draw(shapes(dtype=to_type if SIZES[to_type].block_size > 1 else from_type))
    if from_type == I32:
        a = make.leaf(I32, ne, make.rng.integers(-(2**31), 2**31, ne[::-1]))
    else:
        a = make.like(draw(layouts(from_type, DENSE_ROWS if blocks else ANY_LAYOUT)), from_type, ne, scale=50.0)
    ne_to = ne
    if draw(st.booleans()) and not blocks:  # another shape of as many elements
        ne_to = (ne[0] * ne[1], ne[2], 1, ne[3]) if draw(st.booleans()) else (ne[1], ne[0], ne[3], ne[2])
    if to_type == I32:
        b = make.leaf(I32, ne_to, np.zeros(ne_to))
    else:
        b = make.like(draw(layouts(to_type, DENSE_ROWS if blocks else ANY_LAYOUT)), to_type, ne_to)
    # ggml's vectorised quantisers round some halves another way than the code that writes files
    return Case(ops.cpy(a, b), make.contents, 0.0, peer_nmse=5e-4 if blocks else 0.0)


@st.composite
def cont_cases(draw: Callable) -> Case:
    make = draw(operands())
    dtype = draw(st.sampled_from((*FLOATS, *QUANTISED)))
    make.specials = make.specials and dtype in FLOATS
    a = make.like(draw(layouts(dtype)), dtype, draw(shapes(dtype)))
    kind = draw(st.sampled_from(("cont", "dup", "other shape")))
    if kind == "other shape" and a.nelements and dtype in FLOATS:
        return Case(ops.cont(a, a.ne[0] * a.ne[1], a.ne[2] * a.ne[3]), make.contents, 0.0)
    return Case(ops.dup(a) if kind == "dup" else ops.cont(a), make.contents, 0.0)


@settings(deadline=None, max_examples=150)
@given(case=cpy_cases())
def test_cpy(device: Device, case: Case) -> None:
    check(case, device)


OTHERS = (*(GGMLType[name] for name in ("I8", "I16", "I64", "F64", "IQ2_XXS", "TQ1_0", "MXFP4", "NVFP4", "Q1_0")),)


@st.composite
def moving_cases(draw: Callable) -> Case:
    """The same type on both sides, also one that nothing here computes with: bytes, whatever they mean."""
    make, dtype = draw(operands(specials=False)), draw(st.sampled_from(OTHERS))
    block = SIZES[dtype].block_size
    ne = [block * draw(st.sampled_from((1, 2, 3, 9))), *(draw(st.sampled_from((1, 2, 3, 5))) for _ in range(3))]
    ne_to = [ne[0], *draw(st.permutations(ne[1:]))] if draw(st.booleans()) else ne
    a, b = (make.like(draw(layouts(dtype)), dtype, n, scale=50.0) for n in (ne, ne_to))
    return Case(ops.cpy(a, b), make.contents, 0.0)


@settings(deadline=None, max_examples=60)
@given(case=moving_cases())
def test_types_that_are_only_moved(device: Device, case: Case) -> None:
    check(case, device)


@settings(deadline=None, max_examples=60)
@given(case=cont_cases())
def test_cont_and_dup(device: Device, case: Case) -> None:
    check(case, device)


def test_numbers_that_no_integer_holds(device: Device) -> None:
    """Truncation towards 0, as in C."""
    make = Operands(np.random.default_rng(0))
    a = make.leaf(F32, (7,), np.array([1.9, -1.9, 0.5, -0.0, 2.0**30, -(2.0**31), 16777217.0]))
    check(Case(ops.cpy(a, make.leaf(I32, (7,), np.zeros(7))), make.contents, 0.0), device)


def test_copies_that_look_back_at_themselves(device: Device) -> None:
    """ggml_cast makes a CPY whose second source is the node itself."""
    make = Operands(np.random.default_rng(0))
    a = make.like("planes", F32, (33, 4, 3))
    node = Tensor(F16, a.ne, op=Op.CPY, name="cast")
    node.src = (a, node)
    ops.check(node)
    check(Case(node, make.contents, 0.0), device)


@pytest.mark.parametrize("which", ["reference", "cpu"])
def test_a_node_that_nobody_asked_for_is_left_alone(request: pytest.FixtureRequest, which: str) -> None:
    """ggml-cpu skips nodes without the COMPUTE flag; the scheduler of a stock client relies on it."""
    device: Device = ReferenceDevice() if which == "reference" else request.getfixturevalue("cpu_device")
    a, buffer = Tensor(F32, (64,)), device.alloc_buffer(1024)
    node = ops.dup(a)
    buffer.clear(1)
    buffer.place(a, 0)
    buffer.place(node, 256)
    buffer.set(a, bytes(256))
    backend = device.open()
    for flags, expected in ((0, b"\1"), (16, b"\0")):
        graph = build_forward([node])
        node.flags = flags
        backend.compute(backend.plan(graph))
        backend.synchronize()
        assert buffer.get(node) == expected * 256
    backend.close()


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    for layout in ("dense", "planes", "transposed"):
        assert cpu_device.supports_op(ops.cont(make.like(layout, F32, (64, 9, 3)))), layout
    for a, b in ((F32, F32), (F32, F16), (F16, F32)):
        assert cpu_device.supports_op(ops.cpy(make.like("planes", a, (64, 9, 3)), make.leaf(b, (64, 9, 3)))), (a, b)


def strides_ignored(node: Tensor) -> None:
    a = source(node, 0)
    dense = Tensor(a.type, a.ne)
    dense.buffer, dense.data = a.buffer, a.data
    view_of(node)[...] = encode(node.type, read(dense).reshape(node.ne[::-1]))


def rounded_not_truncated(node: Tensor) -> None:
    view_of(node)[...] = np.rint(read(source(node, 0))).reshape(node.ne[::-1]).astype(np.int32)


def test_mutants_are_caught() -> None:
    floats = [(a, b) for a in FLOATS for b in FLOATS]
    assert_caught(cpy_cases(floats), mutant_of(Op.CPY, (refuse, strides_ignored)))
    assert_caught(cpy_cases([(F32, I32)]), mutant_of(Op.CPY, (refuse, rounded_not_truncated)))
