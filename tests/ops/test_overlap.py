"""Which operands a result may lie on, that kernels compute rightly there, and what a kernel does whose result lies on its
own row numbers all the same."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aliased_numbers import CASES
from hypothesis import given
from hypothesis import strategies as st
from op_check import mutant_of

import pyggml.ops.overlap as overlap
from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import REFERENCE_OPS, ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, ShapeError
from pyggml.graph import build_forward
from pyggml.ops import Op, UnaryOp
from pyggml.ops.overlap import IN_PLACE, reaches_into_itself, share_bytes
from pyggml.ops.rules import RULES
from pyggml.tensor import Tensor

T = GGMLType
SUPPORT = Path(__file__).parents[1] / "support"


def f32(*ne: int) -> Tensor:
    return Tensor(T.F32, ne)


# ---- what shares bytes


def bytes_of(t: Tensor) -> list[int]:
    """Every byte of every element, counted as often as it is one's."""
    starts = [t.data + sum(i * nb for i, nb in zip(at, t.nb, strict=True)) for at in np.ndindex(t.ne)]
    return [start + i for start in starts for i in range(4)]


@st.composite
def tensors(draw: Callable[..., Any]) -> Tensor:
    ne = tuple(draw(st.integers(1, 3)) for _ in range(4))
    nb = tuple(4 * draw(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 12, 16, 24))) for _ in range(4))
    t = Tensor(T.F32, ne, nb)  # type: ignore[arg-type]
    t.data = 4 * draw(st.integers(0, 12))
    return t


@given(tensors(), tensors())
def test_those_said_to_lie_apart_share_no_byte(a: Tensor, b: Tensor) -> None:
    if set(bytes_of(a)) & set(bytes_of(b)):
        assert share_bytes(a, b) and share_bytes(b, a)
    every = bytes_of(a)
    if len(set(every)) < len(every):
        assert reaches_into_itself(a)


def test_columns_of_one_matrix_lie_apart_and_dense_tensors_reach_nowhere() -> None:
    whole = f32(12, 5, 3)
    whole.data = 64
    views = [ops.view(whole, (4, 5, 3), whole.nb[1:3], 16 * i) for i in range(3)]
    for i, view in enumerate(views):
        view.data = whole.data + 16 * i
        assert share_bytes(whole, view) and not reaches_into_itself(view)
        assert [share_bytes(view, other) for other in views[:i]] == [False] * i
    turned = ops.permute(whole, 2, 0, 1, 3)
    assert not reaches_into_itself(turned) and not reaches_into_itself(Tensor(T.Q4_K, (512, 3, 2)))
    one = Tensor(T.F32, (4, 1, 3, 1), (4, 0, 16, 7))  # what is there once may have any stride
    assert not reaches_into_itself(one)
    empty = f32(0, 5)
    empty.data = 80
    assert not share_bytes(whole, empty)


# ---- the table

CAN_INPLACE = """FILL SCALE DIAG_MASK_ZERO DIAG_MASK_INF ADD ADD_ID ADD1 SUB MUL DIV SQR SQRT LOG UNARY ROPE ROPE_BACK RMS_NORM
CLAMP SOFT_MAX SOFT_MAX_BACK"""  # ggml-alloc.c: ggml_op_can_inplace, but for two that are not computed here
VIEWS = {  # ggml.c: the builders whose result is, or may be, ggml_view_tensor of this source
    0: "DUP ADD ADD1 ACC SUB MUL DIV SQR SQRT LOG SIN COS LEAKY_RELU NORM RMS_NORM GROUP_NORM L2_NORM SCALE SET"
    " DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX ROPE ROPE_BACK CLAMP FILL UNARY SOFT_MAX_BACK",
    1: "CPY",
    2: "SET_ROWS",
}


def test_what_the_reference_lays_on_an_operand_is_allowed_and_little_else() -> None:
    expected: dict[Op, set[int]] = {op: set() for op in RULES}
    for name in CAN_INPLACE.split():
        expected[Op[name]].add(0)
    for source, names in VIEWS.items():
        for name in names.split():
            expected[Op[name]].add(source)
    for op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.SOFT_MAX, Op.SOFT_MAX_BACK):
        expected[op].add(1)  # the allocator takes any source that has the result's layout
    expected[Op.CPY].add(0)
    assert {op: set(where) for op, where in IN_PLACE.items()} == expected


def positions() -> Tensor:
    return Tensor(T.I32, (5,))


def ids() -> Tensor:
    return Tensor(T.I32, (3, 5))


BUILDERS: dict[str, Callable[[], Tensor]] = {
    "add": lambda: ops.add(f32(33, 4, 5), f32(33, 4, 5)),
    "add tiled": lambda: ops.add(f32(33, 4, 5), f32(33)),
    "sub": lambda: ops.sub(f32(33, 4, 5), f32(33, 4, 5)),
    "mul": lambda: ops.mul(f32(33, 4, 5), f32(33, 4, 5)),
    "div": lambda: ops.div(f32(33, 4, 5), f32(33, 4, 5)),
    "add1": lambda: ops.add1(f32(33, 4, 5), f32(1)),
    "add_id": lambda: ops.add_id(f32(33, 3, 5), f32(33, 7), ids()),
    "scale": lambda: ops.scale(f32(33, 4, 5), 2.0, 1.0),
    "fill": lambda: ops.fill(f32(33, 4, 5), 2.0),
    "diag_mask_inf": lambda: ops.diag_mask_inf(f32(33, 4, 5), 3),
    "diag_mask_zero": lambda: ops.diag_mask_zero(f32(33, 4, 5), 3),
    "sqr": lambda: ops.sqr(f32(33, 4, 5)),
    "sqrt": lambda: ops.sqrt(f32(33, 4, 5)),
    "log": lambda: ops.log(f32(33, 4, 5)),
    "sin": lambda: ops.sin(f32(33, 4, 5)),
    "cos": lambda: ops.cos(f32(33, 4, 5)),
    "clamp": lambda: ops.clamp(f32(33, 4, 5), -0.5, 0.5),
    "leaky_relu": lambda: ops.leaky_relu(f32(33, 4, 5), 0.1),
    "unary": lambda: ops.unary(f32(33, 4, 5), UnaryOp.SILU),
    "norm": lambda: ops.norm(f32(33, 4, 5), 1e-5),
    "rms_norm": lambda: ops.rms_norm(f32(33, 4, 5), 1e-5),
    "l2_norm": lambda: ops.l2_norm(f32(33, 4, 5), 1e-5),
    "group_norm": lambda: ops.group_norm(f32(33, 4, 6), 2, 1e-5),
    "rope": lambda: ops.rope(f32(32, 4, 5), positions(), 32),
    "rope neox": lambda: ops.rope(f32(32, 4, 5), positions(), 16, ops.ROPE_NEOX),
    "rope back": lambda: ops.rope(f32(32, 4, 5), positions(), 32, back=True),
    "soft_max": lambda: ops.soft_max(f32(33, 4, 5), f32(33, 4, 5), 0.5),
    "soft_max_back": lambda: ops.soft_max_back(f32(33, 4, 5), f32(33, 4, 5), 0.5),
    "dup": lambda: ops.dup(f32(33, 4, 5)),
    "cpy": lambda: ops.cpy(f32(33, 4, 5), f32(33, 4, 5)),
    "set": lambda: ops.set_part(f32(33, 4, 5), f32(5, 2), (4, 132, 528, 2640), 8),
    "acc": lambda: ops.acc(f32(33, 4, 5), f32(5, 2), (4, 132, 528, 2640), 8),
    "set_rows": lambda: ops.set_rows(f32(33, 7), f32(33, 3), Tensor(T.I64, (3,))),
}


def test_every_op_of_the_table_is_computed_below() -> None:
    assert {build().op for build in BUILDERS.values()} == {op for op, where in IN_PLACE.items() if where}


def contents(node: Tensor) -> list[bytes]:
    rng = np.random.default_rng(5)
    made = []
    for t in node.src:
        assert t is not None
        if t.type == T.F32:
            made.append(rng.standard_normal(t.nelements).astype("<f4").tobytes())
        else:
            made.append((np.arange(t.nelements) % 5).astype("<i4" if t.type == T.I32 else "<i8").tobytes())
    return made


def computed(build: Callable[[], Tensor], on: int | None, device: Device, n_threads: int) -> bytes | None:
    """The result where it lies on source `on`, or on none; None where that source has another layout."""
    node = build()
    buffer = device.alloc_buffer(1 << 16)
    at = 64
    for t, data in zip(node.src, contents(node), strict=True):
        assert t is not None
        buffer.place(t, at)
        buffer.set(t, data)
        at += (t.nbytes + 63) // 64 * 64
    onto = None if on is None else node.src[on]
    if onto is not None and (onto.ne, onto.nb, onto.type) != (node.ne, node.nb, node.type):
        return None
    if onto is None and node.view_src is not None:
        onto = node.view_src
    buffer.place(node, at if onto is None else onto.data - buffer.base)
    backend = device.open(n_threads)
    backend.compute(backend.plan(build_forward([node])))
    result = buffer.get(node)
    backend.close()
    buffer.free()
    return result


@pytest.mark.parametrize("name", BUILDERS)
def test_a_result_on_its_operand_is_the_same(cpu_device: Device, name: str) -> None:
    build = BUILDERS[name]
    expected = computed(build, None, cpu_device, 1)
    allowed = IN_PLACE[Op(build().op)]
    results = [computed(build, on, cpu_device, n) for on in allowed for n in (1, 3)]
    done = [r for r in results if r is not None]
    assert done and all(r == expected for r in done)


def backwards(node: Tensor) -> None:
    """Reads an operand again after it has written all of the result."""
    REFERENCE_OPS[Op.SCALE][1](node)
    REFERENCE_OPS[Op.SCALE][1](node)


def test_a_kernel_that_reads_what_it_has_overwritten_is_noticed() -> None:
    device = mutant_of(Op.SCALE, (REFERENCE_OPS[Op.SCALE][0], backwards))
    build = BUILDERS["scale"]
    right = computed(build, None, ReferenceDevice(), 1)
    assert computed(build, None, device, 1) == right == computed(build, 0, ReferenceDevice(), 1)
    assert computed(build, 0, device, 1) != right


# ---- what is refused


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("device", [CPUDevice(), ReferenceDevice()], ids=lambda d: d.name)
def test_a_result_beside_its_operand_is_refused_by_name(device: Device, name: str) -> None:
    """Each source in turn is laid 4 bytes behind the result's first byte: no layout is the same then."""
    for index in range(len(BUILDERS[name]().src)):
        node = BUILDERS[name]()
        buffer = device.alloc_buffer(1 << 16)
        at = 1 << 13
        buffer.place(node, 0)
        for i, t in enumerate(node.src):
            assert t is not None
            buffer.place(t, 8 if i == index else at)
            at += (t.nbytes + 63) // 64 * 64
        if node.view_src is not None and node.src[index] is not node.view_src:
            buffer.place(node.view_src, 0)
        backend = device.open(1)
        with pytest.raises(
            ShapeError, match=rf"^{Op(node.op).name} .*overlaps source {index}, .*may lie on"
        ) as refused:
            backend.plan(build_forward([node]))
        assert "\n" not in str(refused.value)
        backend.close()
        buffer.free()


def test_elements_of_a_result_share_no_bytes(cpu_device: Device) -> None:
    a, b = f32(32, 6), f32(32, 6)
    node = ops.mul_mat(a, b)
    node.nb = (4, 0, 0, 0)
    buffer = cpu_device.alloc_buffer(1 << 16)
    for i, t in enumerate((a, b, node)):
        buffer.place(t, 4096 * i)
    backend = cpu_device.open(1)
    with pytest.raises(ShapeError, match=r"MUL_MAT '': elements of the result share bytes: \[6, 6, 1, 1\], strides"):
        backend.plan(build_forward([node]))
    backend.close()


def test_the_rule_is_needed(monkeypatch: pytest.MonkeyPatch, cpu_device: Device) -> None:
    """Without it a result that lies a row further than its operand is computed, and is not what it should be."""
    a = f32(33, 4)
    node = ops.rms_norm(a, 1e-5)
    buffer = cpu_device.alloc_buffer(1 << 16)
    values = np.random.default_rng(3).standard_normal(132).astype("<f4")
    results = []
    for offset in (4096, 132):
        buffer.place(a, 0)
        buffer.set(a, values.view(np.uint8))
        buffer.place(node, offset)
        backend = cpu_device.open(1)
        if offset == 132:
            monkeypatch.setattr("pyggml.ops.rules.check_overlap", lambda node: None)
        backend.compute(backend.plan(build_forward([node])))
        results.append(buffer.get(node))
        backend.close()
    assert results[0] != results[1]
    assert overlap.share_bytes(node, a)


# ---- numbers that change after they were looked at


def end_of(case: str, which: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SUPPORT / "aliased_numbers.py"), case, which]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("case", CASES)
def test_no_row_is_touched_whose_number_was_not_checked(case: str) -> None:
    done = end_of(case, "right")
    assert done.returncode == 0, done.stderr
    assert "row index" in done.stdout and f"{case.split()[0].upper()} " in done.stdout


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_that_reads_numbers_twice_dies_of_it(case: str) -> None:
    """Of SIGBUS where no address can be so large and the kernel reads through rbp, which x86 calls a fault of the stack."""
    done = end_of(case, "wrong")
    assert done.stdout == "begins\n" and done.returncode in (-signal.SIGSEGV, -signal.SIGBUS), done


def test_a_bad_number_that_was_there_before_is_still_named(cpu_device: Device) -> None:
    table, numbers = f32(33, 4), Tensor(T.I32, (3,))
    node = ops.get_rows(table, numbers, name="rows")
    buffer = cpu_device.alloc_buffer(1 << 16)
    for i, t in enumerate((table, numbers, node)):
        buffer.place(t, 4096 * i)
    buffer.set(numbers, np.array([0, 4, 1], "<i4").view(np.uint8))
    backend = cpu_device.open(2)
    with pytest.raises(ComputeError, match="GET_ROWS 'rows': row index 4, there are 4 rows"):
        backend.compute(backend.plan(build_forward([node])))
    backend.close()
