"""The harness catches what it is there for: wrong values, wrong accesses, untruthful devices."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import op_shares
import pytest
from op_cases import F16, F32, Case, Operands
from op_check import assert_close, check, mutant_of

from pyggml import ops
from pyggml.backend.host import HostBuffer, view_of
from pyggml.backend.reference import REFERENCE_OPS, ReferenceDevice
from pyggml.backend.reference.elementwise import refuse
from pyggml.backend.reference.values import read, source, write
from pyggml.errors import ComputeError
from pyggml.graph import build_forward
from pyggml.ops import Op
from pyggml.tensor import Tensor

SUPPORT = Path(__file__).parents[1] / "support"


def scaled() -> Case:
    make = Operands(np.random.default_rng(0))
    return Case(ops.scale(make.leaf(F32, (32, 3)), 2.0), make.contents, 1e-7)


def test_the_reference_agrees_with_itself() -> None:
    check(scaled(), ReferenceDevice())


def memory(tensor: Tensor) -> np.ndarray:
    assert isinstance(tensor.buffer, HostBuffer)
    return tensor.buffer.memory[tensor.data - tensor.buffer.base - 4 :]


def before_the_result(node: Tensor) -> None:
    REFERENCE_OPS[Op.SCALE][1](node)
    memory(node)[0] = 0


def over_the_operand(node: Tensor) -> None:
    REFERENCE_OPS[Op.SCALE][1](node)
    view_of(source(node, 0))[...] = read(node)


def test_a_write_outside_the_result_is_caught() -> None:
    with pytest.raises(AssertionError, match="before the start"):
        check(scaled(), mutant_of(Op.SCALE, (refuse, before_the_result)))
    with pytest.raises(AssertionError, match="wrote to its operand"):
        check(scaled(), mutant_of(Op.SCALE, (refuse, over_the_operand)))


def between_the_rows(node: Tensor) -> None:
    REFERENCE_OPS[Op.CPY][1](node)
    memory(node)[4 + node.nb[1] - 1] = 77


def test_a_write_between_rows_of_the_result_is_caught() -> None:
    make = Operands(np.random.default_rng(0))
    a, whole = make.leaf(F32, (30, 3)), make.leaf(F16, (32, 3))
    case = Case(ops.cpy(a, ops.view(whole, (30, 3), (64, 192, 192))), make.contents, 0.0)
    check(case, ReferenceDevice())
    with pytest.raises(AssertionError, match="between the elements"):
        check(case, mutant_of(Op.CPY, (REFERENCE_OPS[Op.CPY][0], between_the_rows)))


@pytest.mark.parametrize("access", ["ctypes.string_at(end, 1)", "ctypes.memset(end, 0, 1)"])
def test_an_access_behind_the_end_ends_the_process(access: str) -> None:
    script = f"""
import sys, ctypes; sys.path.insert(0, {str(SUPPORT)!r})
from op_check import GuardedBuffer
from pyggml.backend.reference import ReferenceDevice
buffer = GuardedBuffer(ReferenceDevice(), 100)
end = buffer.base + buffer.size
ctypes.string_at(end - 1, 1)
print("inside", flush=True)
{access}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "inside\n" and done.returncode == -signal.SIGSEGV, (done.returncode, done.stderr)


def never(node: Tensor) -> str | None:
    return "never"


def test_a_device_that_denies_what_it_can_is_no_match_for_its_plan() -> None:
    """supports_op False and a plan that works: one of the two lies."""

    class Denies(ReferenceDevice):
        def supports_op(self, node: Tensor) -> bool:
            return False

    with pytest.raises(pytest.fail.Exception):
        check(scaled(), Denies())
    check(scaled(), mutant_of(Op.SCALE, (never, REFERENCE_OPS[Op.SCALE][1])))


def test_a_device_that_refuses_nearly_all_cases_is_noticed() -> None:
    def verdict(device: str, op: Op, computed: int, asked: int) -> op_shares.Verdict:
        counted = op_shares.Seen()
        for i in range(asked):
            counted.count(device, op, i < computed)
        return counted.end()

    for device, op, least in (
        ("CPU", Op.SCALE, 40),
        ("CUDA1", Op.SCALE, 40),
        ("CUDA0", Op.ADD, 15),
        ("peer", Op.SCALE, 2),
    ):
        assert verdict(device, op, least, 100) == ([], "")
        (wrong,) = verdict(device, op, least - 1, 100).wrong
        assert f"{least - 1} of 100 cases of {op.name}" in wrong
    assert verdict("CUDA0", Op.SOFT_MAX_BACK, 0, 3) == ([], "CUDA does not have SOFT_MAX_BACK"), "such a test is a skip"
    assert verdict("CUDA0", Op.SOFT_MAX_BACK, 1, 3).wrong and verdict("CPU", Op.LOG, 0, 3).wrong
    assert verdict("REF", Op.SOFT_MAX_BACK, 0, 3) == ([], "")


def test_cases_are_counted() -> None:
    class NamedCPU(ReferenceDevice):
        name = "CPU"

    op_shares.seen.begin()
    check(scaled(), NamedCPU())
    assert op_shares.seen._counts == {("CPU", Op.SCALE): [1, 1]}


def test_close() -> None:
    x = np.array([1.0, np.nan, np.inf, -np.inf, 3.0])
    assert_close(x, x, 0.0, 0.0, "same")
    assert_close(x, x + 1e-5, 1e-9, 0.0, "near")
    assert_close(x, x + 1e-5, 0.0, 1.1e-5, "near")
    for i, value in ((0, 1.01), (0, np.nan), (1, 0.0), (2, -np.inf), (2, np.nan), (3, -1e30)):
        y = x.copy()
        y[i] = value
        with pytest.raises(AssertionError):
            assert_close(x, y, 1e-7, 1e-6, "other")
    with pytest.raises(AssertionError):
        assert_close(np.zeros(3), np.full(3, 1e-9), 1e-7, 0.0, "not zero")


def test_abort_ends_a_computation() -> None:
    case = scaled()
    backend = ReferenceDevice().open()

    def abort(node: Tensor) -> None:
        backend.abort()
        write(node, read(source(node, 0)))

    device = mutant_of(Op.SCALE, (refuse, abort))
    backend = device.open()
    node = ops.scale(case.node, 1.0, name="second")
    buffer = device.alloc_buffer(4096)
    leaf = source(case.node, 0)
    for i, t in enumerate((leaf, case.node, node)):
        buffer.place(t, 512 * i)
    with pytest.raises(ComputeError, match="second"):
        backend.compute(backend.plan(build_forward([node])))
