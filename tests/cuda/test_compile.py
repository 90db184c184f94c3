"""Kernels as machine code for three generations of GPUs, made without one: instructions, registers, the cache."""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

import cuda_machine_code
from cuda_emulator import kernel_of
from cuda_kernels import AMPERE, HOPPER, KERNELS, OLD, Expected

from pyggml.backend.cuda import compiled
from pyggml.kernels.cuda.device import build
from pyggml.kernels.cuda.spec import EARLY, Spec

MEMORY = re.compile(r"\b(ld|st|atom|red|cp)\.(?!param|local)")


def waits_first(text: str, spec: Spec, cc: tuple[int, int]) -> None:
    """A kernel that may begin early waits before it reads or writes anything, and then lets the next one begin."""
    waits = [line.strip() for line in text.splitlines() if "griddepcontrol" in line or MEMORY.search(line)]
    asked = [line for line in waits if "griddepcontrol" in line]
    wanted = ["griddepcontrol.wait;", "griddepcontrol.launch_dependents;"] if cc >= EARLY else []
    assert asked == wanted, f"{spec.label} asks for {asked}"
    assert waits[: len(wanted)] == wanted, f"{spec.label} has {waits[0]} before it waits"


def holds(expected: Expected, cc: tuple[int, int]) -> None:
    """The kernel compiles for this GPU; asserts what is expected of it."""
    text, made = cuda_machine_code.machine_code(expected.spec, cc)
    doubles = [line.strip() for line in text.splitlines() if re.search(r"\.f64\b", line)]
    assert expected.doubles or not doubles, f"{expected.spec.label} computes in f64: {doubles[:3]}"
    waits_first(text, expected.spec, cc)
    kernel = kernel_of(expected.spec)
    assert 0 < made.registers * kernel.threads * kernel.blocks <= 65536, (expected.spec.label, made.registers)
    if expected.hot:
        assert max(made.spilled_bytes, made.stack_bytes) == 0, (expected.spec.label, made.log)
    if expected.has and cc == HOPPER:
        if cuda_machine_code.disassembler() is None:
            pytest.skip("nvdisasm is not installed: pip install '.[cuda-test]'")
        code = cuda_machine_code.sass(made.image)
        missing = [name for name in expected.has if name not in code]
        assert not missing, f"{expected.spec.label}: no {missing}"


ALL = bool(os.environ.get("PYGGML_ALL_LEVELS"))
"""Whether each kernel is made for every generation. Else for the newest, where its instructions are looked at, for the one
where registers are scarcest if it needs many, and for one of the three that its name chooses: little differs between them."""


def generations(expected: Expected) -> list[tuple[int, int]]:
    every = [cc for cc in (OLD, AMPERE, HOPPER) if cc >= expected.oldest]
    drawn = every[zlib.crc32(expected.spec.label.encode()) % len(every)]
    return [
        cc for cc in every if ALL or cc == drawn or (cc == HOPPER and expected.has) or (cc == AMPERE and expected.tight)
    ]


SCALE = Spec("unary", "scale")


@pytest.mark.parametrize("expected", KERNELS if ALL else [e for e in KERNELS if e.often], ids=lambda e: e.spec.label)
def test_machine_code(expected: Expected) -> None:
    for cc in generations(expected):
        holds(expected, cc)


def test_every_generation_is_drawn() -> None:
    drawn = {cc for e in KERNELS if e.often for cc in generations(e)}
    assert drawn == {OLD, AMPERE, HOPPER}


@pytest.mark.parametrize(
    ("name", "why"), [("doubles", "computes in f64"), ("without_dp4a", "no .'IDP"), ("with_a_stack", "with_a_stack")]
)
def test_mutants_are_caught(name: str, why: str) -> None:
    wrong = Expected(Spec("cuda_wrong_kernels.own", name), ("IDP.4A.S8.S8",), hot=True)
    with pytest.raises(AssertionError, match=why):
        holds(wrong, HOPPER)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("WAIT", "", r"asks for \['griddepcontrol.launch_dependents;'\]"),
        ("GO_ON", "", r"asks for \['griddepcontrol.wait;'\]"),
    ],
)
def test_a_kernel_that_does_not_wait_is_noticed(monkeypatch: pytest.MonkeyPatch, old: str, new: str, why: str) -> None:
    waits_first(build.ptx(kernel_of(SCALE), HOPPER), SCALE, HOPPER)
    monkeypatch.setattr(build, old, new)
    with pytest.raises(AssertionError, match=why):
        waits_first(build.ptx(kernel_of(SCALE), HOPPER), SCALE, HOPPER)


def test_a_wait_that_comes_too_late_is_noticed() -> None:
    text = "ld.param.u64 %rd1;\nld.global.f32 %f1;\ngriddepcontrol.wait;\ngriddepcontrol.launch_dependents;\n"
    with pytest.raises(AssertionError, match=r"has ld.global.f32 %f1; before it waits"):
        waits_first(text, SCALE, HOPPER)
    with pytest.raises(AssertionError, match="asks for"):
        waits_first(text, SCALE, AMPERE)


def test_the_turns_of_rope_are_rounded_by_themselves() -> None:
    """So that the assembler makes no fma of the product and the difference behind it; it may of a plain product."""
    for spec in (Spec("rope", "rope"), Spec("rope_cache", "rope_cache")):
        assert "mul.rn.f32" in cuda_machine_code.machine_code(spec, HOPPER).ptx
    assert "mul.rn.f32" not in cuda_machine_code.machine_code(Spec("elementwise", "binary"), HOPPER).ptx


def test_machine_code_is_kept_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    made = cuda_machine_code.machine_code(SCALE, HOPPER)
    fresh = build.assemble(build.ptx(kernel_of(SCALE), HOPPER), HOPPER)
    assert made.cubin.image == fresh.image and made.cubin.registers == fresh.registers > 0
    assert cuda_machine_code.machine_code(SCALE, OLD).ptx != made.ptx
    text = cuda_machine_code.sass(made.cubin.image)
    with monkeypatch.context() as patch:
        patch.setattr(build, "ptx", lambda *_: pytest.fail("compiled again"))
        patch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("disassembled again"))
        assert cuda_machine_code.machine_code(SCALE, HOPPER) == made
        assert cuda_machine_code.sass(made.cubin.image) == text
    for file in (tmp_path / "cuda" / "text").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert cuda_machine_code.machine_code(SCALE, HOPPER).ptx == made.ptx
    assert cuda_machine_code.sass(made.cubin.image) == text


def test_a_newer_gpu_gets_the_same_ptx_assembled_for_it() -> None:
    text = build.ptx(kernel_of(Spec("unary", "scale")), (12, 0))
    assert ".target sm_90" in text
    assert build.assemble(text, (12, 0)).image[:4] == b"\x7fELF"


def test_a_gpu_that_the_assembler_does_not_know_gets_ptx_which_its_driver_compiles() -> None:
    assert (
        build.code(Spec("unary", "scale"), (13, 0))
        == build.ptx(kernel_of(Spec("unary", "scale")), (13, 0)).encode() + b"\0"
    )


# ---- the cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled.Counts, "compiled", 0)
    monkeypatch.setattr(compiled.Counts, "loaded", 0)
    return tmp_path / "cuda"


def counts() -> tuple[int, int]:
    return compiled.Counts.compiled, compiled.Counts.loaded


def test_a_kernel_is_compiled_once_for_each_generation(folder):
    first = compiled.cubin(SCALE, HOPPER)
    assert compiled.cubin(SCALE, HOPPER) == first and counts() == (1, 1)
    assert compiled.cubin(SCALE, OLD) != first and counts() == (2, 1)
    assert len(list(folder.rglob("*.cubin"))) == 2


def test_a_damaged_file_is_made_anew(folder):
    first = compiled.cubin(SCALE, HOPPER)
    (file,) = folder.rglob("*.cubin")
    file.write_bytes(file.read_bytes()[:-1])
    assert compiled.cubin(SCALE, HOPPER) == first and counts() == (2, 0)


def test_names_depend_on_kernel_sources_versions_and_generation(monkeypatch):
    names = {compiled.key(SCALE, HOPPER), compiled.key(SCALE, OLD), compiled.key(Spec("unary", "unary"), HOPPER)}
    monkeypatch.setattr(compiled, "_versions", lambda: ("numba-cuda 9.9",))
    names.add(compiled.key(SCALE, HOPPER))
    monkeypatch.setattr(compiled, "_sources", lambda module: "other texts")
    names.add(compiled.key(SCALE, HOPPER))
    assert len(names) == 5


def test_a_cache_that_cannot_be_written_costs_time_and_not_the_run(tmp_path, monkeypatch, caplog):
    (tmp_path / "cuda").write_text("a file")
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    assert compiled.cubin(SCALE, HOPPER) == compiled.cubin(SCALE, HOPPER)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"kernel cache {tmp_path}/cuda/sm_90: Not a directory")


def test_a_file_that_others_may_write_is_replaced(folder):
    first = compiled.cubin(SCALE, HOPPER)
    (file,) = folder.rglob("*.cubin")
    file.chmod(0o666)
    assert compiled.cubin(SCALE, HOPPER) == first and counts() == (2, 0)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_warm_start_imports_no_compiler(folder):
    compiled.cubin(SCALE, HOPPER)
    code = (
        "import sys\nfrom pyggml.backend.cuda import compiled\nfrom pyggml.kernels.cuda.spec import Spec\n"
        "assert compiled.cubin(Spec('unary', 'scale'), (9, 0))[:4] == b'\\x7fELF'\n"
        "print([m for m in ('numba', 'llvmlite', 'cuda') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_machine_without_a_gpu_imports_nothing_of_cuda():
    code = (
        "import sys\nfrom pyggml_cli.devices import gpu_devices\ngpu_devices()\n"
        "import pyggml.backend.cuda as c\nprint(c.why_no_cuda(), [m for m in ('numba.cuda', 'cuda', 'llvmlite') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if "libcuda" not in done.stdout:
        pytest.skip("this machine has an NVIDIA driver")
    assert done.stdout.strip() == "there is no NVIDIA driver (libcuda.so.1) []"
