"""Compiling and loading kernels: levels, names of kernels, the cache of object files, what is imported. Folders that cannot be used or
trusted: test_kernel_cache.py.
"""

import importlib.metadata
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from levels import TARGETS
from planting import SECOND, numbers, restart, run, spec

from pyggml import jit
from pyggml.jit import Spec, compiling, machine, store

__all__ = ["restart"]  # a fixture

# ---- the machine


def every_feature(*but: str) -> str:
    names = [f for needs in machine.NEEDS.values() for f in needs]
    return ",".join(("-" if f in but else "+") + f for f in ["sse2", *names])


LEVELS = [
    *((*target, level) for level, target in TARGETS.items()),
    ("znver5", every_feature(), "vnni"),
    ("skylake-avx512", every_feature("avx512vnni"), "v4"),
    ("a CPU that nobody knows", "", "generic"),
    ("a CPU that nobody knows", every_feature(), "vnni"),
    ("generic", "", "generic"),
    *(("haswell", every_feature(f), "v2") for f in machine.NEEDS["v3"]),
    *(("haswell", every_feature(f), "v3") for f in machine.NEEDS["v4"]),  # whatever else it has
    *(("old", every_feature(f), "generic") for f in machine.NEEDS["v2"]),
    ("x86-64-v3", "-avx2", "v2"),
    ("x86-64-v4", "-f16c,+avx512vnni", "v2"),
    ("cortex-a76", "+neon,+fullfp16", "generic"),
]


@pytest.mark.parametrize(("name", "features", "level"), LEVELS)
def test_level(name: str, features: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CPU_NAME", name)
    monkeypatch.setenv("NUMBA_CPU_FEATURES", features)
    monkeypatch.setattr(machine, "target", machine.target.__wrapped__)
    assert machine.target() == (name, features)
    assert machine.level.__wrapped__() == level


def test_target_without_a_word_on_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU name alone means its bare features, not the host's; features alone are those of the host's CPU name."""
    host = machine.llvm.get_host_cpu_name()
    monkeypatch.setenv("NUMBA_CPU_NAME", "x86-64-v2")
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    assert machine.target.__wrapped__() == ("x86-64-v2", "")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2")
    monkeypatch.delenv("NUMBA_CPU_NAME")
    assert machine.target.__wrapped__() == (host, "+avx2")
    monkeypatch.delenv("NUMBA_CPU_FEATURES")
    assert machine.target.__wrapped__() == (host, machine.llvm.get_host_cpu_features().flatten())
    monkeypatch.setattr(machine.llvm, "get_host_cpu_features", lambda: (_ for _ in ()).throw(RuntimeError))
    assert machine.target.__wrapped__() == (host, "")


# ---- names


@pytest.mark.parametrize("args", [(), ("F16", 12, -1), ("a/b\\c:d*?", '"<|>\n ', "ü"), ("../..",)])
def test_label_names_a_file(args: tuple[str | int, ...]) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.~-]+", Spec("matmul", "rows", args).label.replace("ü", "~"))
    assert not Spec("..", "rows", args).label.startswith(".. /")


def test_kernels_of_one_name_are_told_apart(restart: Callable[[], None]) -> None:
    one, other = spec("number", 7), spec("number", "7")
    assert one.label == other.label
    assert jit.function(one)(1) == 8 and jit.function(other)(1) == 1001
    restart()
    assert jit.function(other)(1) == 1001 and jit.function(one)(1) == 8
    assert jit.Counts.loaded == 1 and jit.Counts.compiled == 1


# ---- the cache
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    assert run(SECOND, tmp_path) == "2 0 [5, 6] False\n"
    assert run(SECOND, tmp_path) == "0 2 [5, 6] False\n"
    assert run(SECOND, tmp_path, NUMBA_DISABLE_JIT="1") == "0 2 [5, 6] False\n"
    assert run(SECOND, tmp_path, NUMBA_OPT="2") == "2 0 [5, 6] False\n"


def files(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.rglob("*.o"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "only a head": lambda data: data[:20],
    "head and seal": lambda data: data[:40],
    "half": lambda data: data[: len(data) // 2],
    "one byte less": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "a bit in the code": lambda data: data[:-300] + bytes([data[-300] ^ 1]) + data[-299:],
    "a bit in the symbol": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"#!/bin/sh\n" * 100,
    "an older version": lambda data: b"PYGGMLK1" + data[8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_replaced(damage: str, restart: Callable[[], None], tmp_path: Path) -> None:
    assert jit.function(spec("number", 3))(1) == 4
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    restart()
    assert jit.function(spec("number", 3))(1) == 4 and (jit.Counts.compiled, jit.Counts.loaded) == (1, 0)
    assert files(tmp_path) == [file] and len(file.read_bytes()) == len(whole)
    restart()
    assert jit.function(spec("number", 3))(1) == 4 and (jit.Counts.compiled, jit.Counts.loaded) == (0, 1)


def test_another_kernels_file_is_not_taken(restart: Callable[[], None], tmp_path: Path) -> None:
    jit.ensure(numbers(2))
    zero, one = files(tmp_path)
    zero.write_bytes(one.read_bytes())
    restart()
    assert [jit.function(s)(5) for s in numbers(2)] == [5, 6]
    assert (jit.Counts.compiled, jit.Counts.loaded) == (1, 1)


def test_assembly_is_kept_as_code_is(restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = numbers(2)
    texts = [jit.assembly(one), jit.assembly(other)]
    assert all("retq" in text for text in texts) and texts[0] != texts[1]
    compiled: list[Spec] = []

    def compile_anew(spec: Spec) -> tuple[compiling.Code, str]:
        compiled.append(spec)
        return compiling.Code("none", b""), texts[numbers(2).index(spec)]

    monkeypatch.setattr(compiling, "with_assembly", compile_anew)
    restart()
    assert [jit.assembly(one), jit.assembly(other)] == texts and not compiled
    assert [jit.function(s)(5) for s in (one, other)] == [5, 6]
    assert (jit.Counts.compiled, jit.Counts.loaded) == (0, 2), "what is compiled for its text is kept as a kernel too"
    first, second = (store.folder().path / store.file_name(spec, "s") for spec in (one, other))
    whole = first.read_bytes()
    code = second.with_suffix(".o").read_bytes()
    for wrong in (second.read_bytes(), whole[:-1], code, b""):  # another kernel's, half of it, no text, nothing
        first.write_bytes(wrong)
        assert jit.assembly(one) == texts[0] and first.read_bytes() == whole
    second.write_bytes(code)
    assert jit.assembly(other) == texts[1] and compiled == [one] * 4 + [other]


def test_what_the_cache_depends_on(restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh() -> Path:
        path: Path = store.folder.__wrapped__().path
        return path

    seen = [fresh()]
    assert fresh() == seen[0]
    version = importlib.metadata.version
    changes: list[tuple[object, str, object]] = [
        (machine, "level", lambda: "other level"),
        (machine, "target", lambda: ("other", "")),
        (machine, "target", lambda: (machine.llvm.get_host_cpu_name(), "-one,+other")),
        (machine.llvm, "get_default_triple", lambda: "aarch64-unknown-linux-gnu"),
        (store.llvmlite, "__version__", "0.0"),
        (importlib.metadata, "version", lambda name: "0.0" if name == "numba" else version(name)),
    ]
    for where, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            seen.append(fresh())
    monkeypatch.setenv("NUMBA_OPT", "1")
    seen.append(fresh())
    assert len(set(seen)) == len(seen)


def test_old_files_of_a_kernel_are_deleted(restart: Callable[[], None], tmp_path: Path) -> None:
    jit.address(spec("number", 1))
    (file,) = files(tmp_path)
    label = spec("number", 1).label
    old, young, other = (
        file.with_name(f"{name}.o") for name in (f"{label}.{'0' * 12}", f"{label}.{'1' * 12}", "other")
    )
    for path in (old, young, other):
        path.write_bytes(b"")
    for path in (old, other):
        os.utime(path, (0, 0))
    file.unlink()
    restart()
    jit.address(spec("number", 1))
    assert file.exists() and not old.exists() and young.exists() and other.exists()


@pytest.mark.parametrize("locks", ["no module", "no locks"])
def test_systems_without_file_locks(locks: str, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    if locks == "no module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:

        def flock(*_: object) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fcntl.lockf", flock)
    assert jit.function(spec("number", 5))(5) == 10


# ---- what is imported

WARM = """
import sys
import pyggml
assert "numba" not in sys.modules and "llvmlite" not in sys.modules, "import pyggml"
import numpy as np
from pyggml import jit, ops
from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.tensor import Tensor
assert "numba" not in sys.modules, "import pyggml.backend.cpu"
device = CPUDevice()
a = Tensor(GGMLType.F32, (8, 2))
node = ops.add(a, a)
buffer = device.alloc_buffer(1024)
buffer.place(a, 0)
buffer.place(node, 512)
buffer.set(a, np.arange(16, dtype=np.float32).tobytes())
backend = device.open(2)
backend.compute(backend.plan(build_forward([node])))
assert np.frombuffer(buffer.get(node), np.float32).tolist() == [2.0 * i for i in range(16)]
backend.close()
print(jit.Counts.compiled, "numba" in sys.modules)
"""


def test_a_warm_run_imports_no_numba(tmp_path: Path) -> None:
    compiled, numba = run(WARM, tmp_path).split()
    assert int(compiled) > 0 and numba == "False"  # that is for the processes that compile
    assert run(WARM, tmp_path) == "0 False\n"
    assert run("import sys; sys.modules['fcntl'] = None\n" + WARM, tmp_path) == "0 False\n"
