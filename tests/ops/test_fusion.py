"""Pairs of ops that the CPU backend does in one step: the same bits as in two, and only where nothing else reads what is between."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DENSE_ROWS, F32, I32, Operands, shapes

from pyggml import ops
from pyggml.backend.base import Buffer
from pyggml.backend.cpu import CPUDevice, CPUPlan
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.tensor import Flag, Tensor


def place(tensors: Sequence[Tensor], contents: dict[int, tuple[Tensor, bytes]]) -> Buffer:
    """Every tensor in one buffer, with what is in it."""
    room = sum(t.nbytes + 64 for t in tensors)
    buffer = CPUDevice().alloc_buffer(room)
    at = 0
    for t in tensors:
        if t.view_src is None:
            buffer.place(t, at)
            at += -(-t.nbytes // 64) * 64
            if id(t) in contents:
                buffer.set(t, contents[id(t)][1])
    for t in tensors:
        if t.view_src is not None:
            t.buffer, t.data = t.view_src.buffer, t.view_src.data + t.view_offs
    return buffer


def every(*outputs: Tensor) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    stack = list(outputs)
    while stack:
        t = stack.pop()
        if id(t) not in found:
            found[id(t)] = t
            stack += [s for s in (*t.src, t.view_src) if s is not None]
    return list(found.values())


def steps(*outputs: Tensor) -> int:
    """Number of steps of the plan, once all has an address."""
    graph = build_forward(outputs)
    backend = CPUDevice().open(1)
    plan = backend.plan(graph)
    backend.close()
    assert isinstance(plan, CPUPlan)
    return len(plan.steps)


def compute(result: Tensor, n_threads: int) -> bytes:
    backend = CPUDevice().open(n_threads)
    backend.compute(backend.plan(build_forward([result])))
    backend.close()
    assert result.buffer is not None
    return result.buffer.get(result)


@settings(deadline=None, max_examples=40)
@given(
    shapes(), st.sampled_from(DENSE_ROWS), st.booleans(), st.booleans(), st.integers(1, 3), st.sampled_from([0.0, 1e-5])
)
def test_the_bits_are_those_of_two_steps(
    ne: tuple[int, int, int, int], layout: str, one_row: bool, in_place: bool, n_threads: int, eps: float
) -> None:
    make = Operands(np.random.default_rng(sum(ne)))
    a, weights = make.like(layout, F32, ne), make.leaf(F32, ne[:1] if one_row else ne)
    norm = ops.rms_norm(a, eps)
    result = ops.mul(norm, weights)
    place(every(result), make.contents)
    if not result.nelements:
        return
    if in_place and layout == "dense":
        result.data = a.data
    before = bytes(a.buffer.get(a)) if a.buffer else b""
    assert steps(result) == 1
    fused = compute(result, n_threads)
    if in_place and layout == "dense":
        a.buffer.set(a, before)  # type: ignore[union-attr]
        result.data = norm.data
    norm.flags |= Flag.OUTPUT
    assert steps(result) == 2
    assert fused == compute(result, n_threads)


def build(change: str) -> tuple[list[Tensor], dict[int, tuple[Tensor, bytes]]]:
    make = Operands(np.random.default_rng(0))
    a, weights = make.leaf(F32, (64, 5)), make.leaf(F32, (64,))
    norm = ops.rms_norm(a, 1e-5)
    outputs = [ops.mul(norm, weights)]
    if change == "a second reader":
        outputs.append(ops.scale(norm, 2.0))
    elif change == "a reader of a view":
        outputs.append(ops.scale(ops.view(norm, (32, 5), (256, 1280, 1280)), 2.0))
    elif change == "the other order":
        outputs = [ops.mul(make.leaf(F32, (64, 5)), norm)]
    elif change == "read twice":
        outputs = [ops.mul(norm, norm)]
    elif change == "one weight a row":
        outputs = [ops.mul(norm, make.leaf(F32, (1, 5)))]
    elif change == "another type":
        outputs = [ops.mul(norm, make.leaf(GGMLType.F16, (64,)))]
    elif change == "wanted outside":
        norm.flags |= Flag.OUTPUT
    elif change == "a step between":
        outputs = [ops.mul(norm, ops.scale(make.leaf(F32, (64,)), 2.0))]
    return outputs, make.contents


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("nothing", 1),
        ("a second reader", 3),
        ("a reader of a view", 3),
        ("the other order", 2),
        ("read twice", 2),
        ("one weight a row", 2),
        ("another type", 2),
        ("wanted outside", 2),
        ("a step between", 3),
    ],
)
def test_only_where_nobody_sees_a_difference(change: str, expected: int) -> None:
    outputs, contents = build(change)
    place(every(*outputs), contents)
    assert steps(*outputs) == expected


def test_a_result_that_runs_over_rows_still_to_be_read_is_left_in_two_steps() -> None:
    """The source's memory may be given away once the norm is done: then one step would destroy what it has to read."""
    (result,), contents = build("nothing")
    norm = result.src[0]
    assert norm is not None and norm.src[0] is not None
    a = norm.src[0]
    place(every(result), contents)
    expected = compute(result, 1)
    room = CPUDevice().alloc_buffer(a.nbytes + a.nb[1])
    room.place(a, 0)
    room.place(result, a.nb[1])
    room.set(a, contents[id(a)][1])
    assert steps(result) == 2
    assert compute(result, 2) == expected


def test_what_another_split_reads_is_computed() -> None:
    """The norm's second reader is in another split of the same device: the scheduler's counts say so."""

    class Picky(CPUDevice):
        def why_not(self, node: Tensor) -> str | None:
            """A leaves SCALE to B, B everything else to A."""
            return "not here" if (node.op == ops.Op.SCALE) == (self.name == "A") else super().why_not(node)

    make = Operands(np.random.default_rng(0))
    a, weights = make.leaf(F32, (64, 5)), make.leaf(F32, (64,))
    inputs = {id(t): t for t in (a, weights)}
    for t in inputs.values():
        t.flags |= Flag.INPUT
    norm = ops.rms_norm(a, 1e-5)
    product = ops.mul(norm, weights)
    elsewhere = ops.scale(product, 2.0)  # the other device's
    result = ops.add(ops.mul(elsewhere, norm), norm)
    result.flags |= Flag.OUTPUT
    backends = [Picky(name).open(1) for name in "AB"]
    scheduler = Scheduler(backends)
    schedule = scheduler.schedule(build_forward([result]))
    for t in inputs.values():
        schedule.set_input(t, np.frombuffer(make.contents[id(t)][1], np.float32).reshape(t.ne[::-1]))
    schedule.run()
    x = np.frombuffer(make.contents[id(a)][1], np.float32).reshape(5, 64).astype(np.float64)
    w = np.frombuffer(make.contents[id(weights)][1], np.float32).astype(np.float64)
    y = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(schedule.get(result).reshape(5, 64), 2 * y * w * y + y, rtol=1e-5, atol=1e-6)
    assert len(schedule.splits) == 3
    scheduler.close()
    for backend in backends:
        backend.close()


def test_a_gather_is_no_norm() -> None:
    """Only the pairs of the table are fused: GET_ROWS before MUL stays as it is."""
    make = Operands(np.random.default_rng(0))
    rows = make.leaf(I32, (3,), np.array([0, 2, 1]))
    result = ops.mul(ops.get_rows(make.leaf(F32, (64, 5)), rows), make.leaf(F32, (64,)))
    place(every(result), make.contents)
    assert steps(result) == 2
