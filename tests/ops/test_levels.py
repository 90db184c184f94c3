"""Every kernel at every CPU level, in a process of its own: right results, no register that the level does not have,
no call of what is not there; and the same bits for any number of threads."""

import os
from pathlib import Path

import assembly
import every_kernel
import numpy as np
import pytest
import warm
from levels import HERE, TARGETS, assembly_at, at_level
from op_check import assert_close, values_of

from pyggml import jit
from pyggml.backend.base import Device
from pyggml.backend.reference import ReferenceDevice
from pyggml.kernels.cpu import FAMILIES

WIDEST = {"generic": "xmm", "v2": "xmm", "v3": "ymm", "v4": "zmm", "vnni": "zmm"}
assert set(TARGETS) == set(jit.LEVELS)


def levels_of_this_machine() -> list[str]:
    name = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    assert name == (None, None), "this test sets the level itself"
    return [level for level in jit.LEVELS if level in HERE]


@pytest.fixture(params=jit.LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    if request.param not in levels_of_this_machine():
        pytest.skip(f"this machine is {jit.level()} and cannot run code for {request.param}")
    return str(request.param)


@pytest.fixture(scope="module")
def cases(cpu_device: Device) -> dict[str, every_kernel.Case]:
    return every_kernel.cases(cpu_device)


@pytest.fixture(scope="module")
def expected(cases: dict[str, every_kernel.Case]) -> dict[str, np.ndarray]:
    expected_bytes = every_kernel.compute(ReferenceDevice(), cases)
    return {name: values_of(case.node, expected_bytes[name]) for name, case in cases.items()}


def compare(cases: dict[str, every_kernel.Case], expected: dict[str, np.ndarray], actual: dict[str, bytes]) -> None:
    assert set(actual) == set(cases)
    for name, case in cases.items():
        assert_close(expected[name], values_of(case.node, actual[name]), case.nmse, case.atol, name)


def test_every_family_is_there(cases: dict[str, every_kernel.Case]) -> None:
    assert every_kernel.families(cases) >= set(FAMILIES)


@pytest.mark.slow
def test_every_kernel(
    level: str, cases: dict[str, every_kernel.Case], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    turn = warm.turn(level)
    at_level(level, every_kernel.__file__, str(tmp_path / "results.npz"), *map(str, turn))
    with np.load(tmp_path / "results.npz") as results:
        assert str(results["level"]) == level
        actual = {name: results[name].tobytes() for name in results.files if name != "level"}
    mine = every_kernel.share(cases, *turn)
    compare({name: case for name, case in cases.items() if name in mine}, expected, actual)


def test_each_kernel_is_run_at_two_levels_beside_this_machines(cases: dict[str, every_kernel.Case]) -> None:
    even, odd = (every_kernel.share(cases, turn, 2) for turn in (0, 1))
    assert even | odd == set(cases) == every_kernel.share(cases, 3, 1)
    always = {"mul_mat-Q4_0-96-1", "mul_mat-F16-97-33", "rms_norm", "rope-0", "flash_attn-F16-1", "set_rows-Q8_0"}
    assert even & odd >= always and len(even) < 0.8 * len(cases) > len(odd)


def test_a_wrong_result_is_noticed(cases: dict[str, every_kernel.Case], expected: dict[str, np.ndarray]) -> None:
    expected_bytes = every_kernel.compute(ReferenceDevice(), cases)
    compare(cases, expected, expected_bytes)
    for name in ("rms_norm", "get_rows-Q4_1", "mul_mat-Q8_0-96-33"):
        wrong = bytearray(expected_bytes[name])
        wrong[7] ^= 0x80  # a sign
        with pytest.raises(AssertionError, match=name):
            compare(cases, expected, {**expected_bytes, name: bytes(wrong)})


def test_the_number_of_threads_changes_no_bit(
    cpu_device: Device, cases: dict[str, every_kernel.Case], expected: dict[str, np.ndarray]
) -> None:
    one = every_kernel.compute(cpu_device, cases, 1)
    compare(cases, expected, one)
    for n_threads in (2, 3, 7):
        several = every_kernel.compute(cpu_device, cases, n_threads)
        different = [name for name in cases if several[name] != one[name]]
        assert not different, f"{n_threads} threads: {different}"


KERNELS = (
    ("norm", "rms_norm", ("f32", "f32", "f32")),
    ("rope", "table", ()),
    ("rope", "rope", ("neighbours", "f32", "f32")),
    ("soft_max", "soft_max", ("f32", "f32", "f16", 0, 0)),
    ("glu", "glu", ("swiglu", "f32", "f32", "f32")),
    ("unary", "unary", ("gelu", "f32", "f32")),
    ("elementwise", "binary", ("add", "row", "f32", "f32", "f32")),
    ("rows", "get_rows", ("f32", "q4_1")),
    ("rows", "set_rows", ("f16", "f32")),
    ("rows", "set_quantised_rows", ("q8_0",)),
    ("copy", "quantise", ("q4_0",)),
    ("copy", "convert", ("bf16", "f32/")),
)


@pytest.mark.slow
def test_registers_and_calls(level: str) -> None:
    """Kernels are written for 16 lanes: at each level they fill its widest register and need no wider one. Of libraries
    they call the sine and cosine of ROPE's table, and what moves memory."""
    texts = assembly_at(level, [(f"{module}.{factory}", module, factory, args) for module, factory, args in KERNELS])
    assert len(texts) == len(KERNELS)
    for (name, args), text in texts.items():
        what = f"{name}{args} at {level}"
        width = assembly.widest_register(text)
        if name == "rope.table":
            allowed = {"sin", "cos", "sincos"}
        else:
            assert width == WIDEST[level], f"{what}: widest register is {width}"
            allowed = set()
        called = assembly.calls(text)
        assert called <= allowed | {"memmove", "memcpy", "memset"}, f"{what}: {called}"
        assert assembly.WIDTHS.index(width) <= assembly.WIDTHS.index(WIDEST[level]), f"{what}: {width}"


def test_the_inspection_sees_what_is_there() -> None:
    assert assembly.widest_register("vaddps %xmm1, %xmm2, %xmm3\nvaddps (%rdi), %ymm0, %ymm0") == "ymm"
    text = "f:\n\tcallq\tsinf\n\tjmp\t.L2\n\tmovabsq\t$cosf, %rax\n\tcallq\t*%rax\n\tcallq\tf\n"
    assert assembly.calls(text) == {"sinf", "cosf"}
