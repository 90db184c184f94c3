"""The compiler's door: levels, the cache of object files, two processes that compile, failures. Must not know what
real kernels compute: tests/support/word_kernels/planted.py has some that only misbehave.
"""

import functools
import importlib.metadata
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from levels import TARGETS

from pyggml import jit
from pyggml.errors import DeviceError
from pyggml.jit import Spec

SUPPORT = Path(__file__).parent / "support"


def spec(name: str, *args: str | int) -> Spec:
    return Spec("word_kernels.planted", name, args, "i64(i64)")


def numbers(count: int, name: str = "number") -> list[Spec]:
    return [spec(name, n) for n in range(count)]


@pytest.fixture
def restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has this process begin anew with an empty cache; to be called for a second start with what is cached now."""
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    monkeypatch.setenv("PLANTED_PARENT", str(os.getpid()))

    def start() -> None:
        monkeypatch.setattr(jit, "cache_folder", functools.cache(jit.cache_folder.__wrapped__))
        monkeypatch.setattr(jit, "_linker", functools.cache(jit._Linker))
        monkeypatch.setattr(jit, "_addresses", {})
        monkeypatch.setattr(jit.Counts, "compiled", 0)
        monkeypatch.setattr(jit.Counts, "loaded", 0)

    start()
    return start


def run(script: str, tmp_path: Path, **env: str) -> str:
    """Standard output of a Python process whose cache is `tmp_path`."""
    done = start(script, tmp_path, **env)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    return str(out)


def start(script: str, tmp_path: Path, **env: str) -> subprocess.Popen[str]:
    everything = {**os.environ, "PYGGML_CACHE": str(tmp_path), "PYTHONPATH": str(SUPPORT), **env}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], env=everything, stdout=pipe, stderr=pipe, text=True)


# ---- the machine


def every_feature(*but: str) -> str:
    names = [f for needs in jit._NEEDS.values() for f in needs]
    return ",".join(("-" if f in but else "+") + f for f in ["sse2", *names])


LEVELS = [
    *((*target, level) for level, target in TARGETS.items()),
    ("znver5", every_feature(), "vnni"),
    ("skylake-avx512", every_feature("avx512vnni"), "v4"),
    ("a CPU that nobody knows", "", "generic"),
    ("a CPU that nobody knows", every_feature(), "vnni"),
    ("generic", "", "generic"),
    *(("haswell", every_feature(f), "v2") for f in jit._NEEDS["v3"]),
    *(("haswell", every_feature(f), "v3") for f in jit._NEEDS["v4"]),  # whatever else it has
    *(("old", every_feature(f), "generic") for f in jit._NEEDS["v2"]),
    ("x86-64-v3", "-avx2", "v2"),
    ("x86-64-v4", "-f16c,+avx512vnni", "v2"),
    ("cortex-a76", "+neon,+fullfp16", "generic"),
]


@pytest.mark.parametrize(("name", "features", "level"), LEVELS)
def test_level(name: str, features: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CPU_NAME", name)
    monkeypatch.setenv("NUMBA_CPU_FEATURES", features)
    monkeypatch.setattr(jit, "target", jit.target.__wrapped__)
    assert jit.target() == (name, features)
    assert jit.level.__wrapped__() == level


def test_target_without_a_word_on_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU name alone means its bare features, not the host's; features alone are those of the host's CPU name."""
    host = jit.llvm.get_host_cpu_name()
    monkeypatch.setenv("NUMBA_CPU_NAME", "x86-64-v2")
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    assert jit.target.__wrapped__() == ("x86-64-v2", "")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2")
    monkeypatch.delenv("NUMBA_CPU_NAME")
    assert jit.target.__wrapped__() == (host, "+avx2")
    monkeypatch.delenv("NUMBA_CPU_FEATURES")
    assert jit.target.__wrapped__() == (host, jit.llvm.get_host_cpu_features().flatten())
    monkeypatch.setattr(jit.llvm, "get_host_cpu_features", lambda: (_ for _ in ()).throw(RuntimeError))
    assert jit.target.__wrapped__() == (host, "")


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

SECOND = """
import sys
from pyggml import jit
from pyggml.jit import Spec
specs = [Spec("word_kernels.planted", "number", (n,), "i64(i64)") for n in range(2)]
jit.ensure(specs)
print(jit.Counts.compiled, jit.Counts.loaded, [jit.function(s)(5) for s in specs], "numba" in sys.modules)
"""


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    assert run(SECOND, tmp_path) == "2 0 [5, 6] True\n"
    assert run(SECOND, tmp_path) == "0 2 [5, 6] False\n"
    assert run(SECOND, tmp_path, NUMBA_DISABLE_JIT="1") == "0 2 [5, 6] False\n"
    assert run(SECOND, tmp_path, NUMBA_OPT="2") == "2 0 [5, 6] True\n"


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


def test_what_the_cache_depends_on(restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = jit.cache_folder.__wrapped__
    seen = [fresh()]
    assert fresh() == seen[0]
    version = importlib.metadata.version
    changes: list[tuple[object, str, object]] = [
        (jit, "level", lambda: "other level"),
        (jit, "target", lambda: ("other", "")),
        (jit, "target", lambda: (jit.llvm.get_host_cpu_name(), "-one,+other")),
        (jit.llvm, "get_default_triple", lambda: "aarch64-unknown-linux-gnu"),
        (jit.llvmlite, "__version__", "0.0"),
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


def test_a_cache_that_cannot_be_made(
    tmp_path: Path, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match=re.escape(str(tmp_path / "file")) + ".*Not a directory"):
        jit.address(spec("number", 1))


def test_a_cache_that_cannot_be_written(restart: Callable[[], None]) -> None:
    (jit.cache_folder() / "lock").mkdir()
    with pytest.raises(DeviceError, match=re.escape(str(jit.cache_folder())) + ".*Is a directory"):
        jit.address(spec("number", 1))
    (jit.cache_folder() / "lock").rmdir()
    jit._cache_file(spec("number", 1)).mkdir()
    with pytest.raises(DeviceError, match=re.escape(str(jit.cache_folder())) + ".*Is a directory"):
        jit.address(spec("number", 1))


@pytest.mark.parametrize("locks", ["no module", "no locks"])
def test_systems_without_file_locks(locks: str, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    if locks == "no module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:

        def flock(*_: object) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fcntl.flock", flock)
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
    assert int(compiled) > 0 and numba == "True"
    assert run(WARM, tmp_path) == "0 False\n"
    assert run("import sys; sys.modules['fcntl'] = None\n" + WARM, tmp_path) == "0 False\n"


# ---- compiling


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    script = SECOND.replace("range(2)", "range(8)")
    log = tmp_path / "log"
    both = [start(script, tmp_path, PLANTED_LOG=str(log)) for _ in range(2)]
    outputs = [p.communicate(timeout=300) for p in both]
    assert all("[5, 6, 7, 8, 9, 10, 11, 12]" in out for out, _ in outputs), outputs
    assert sorted(log.read_text().split()) == [str(n) for n in range(8)]


def test_progress(restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, str]] = []
    jit.on_compile(lambda *call: calls.append(call))
    try:
        jit.ensure(numbers(6))
        restart()
        jit.ensure(numbers(6))
    finally:
        jit.on_compile(None)
    done, total, labels = zip(*calls, strict=True)
    assert set(total) == {6} and list(done) == sorted(done) and done[0] == 0 and calls[-1] == (6, 6, "")
    assert done.count(6) == 1 and set(labels[:-1]) <= {s.label for s in numbers(6)}


@pytest.mark.parametrize("name", ["deadly", "fails_elsewhere"])
def test_kernels_that_the_second_process_does_not_make(name: str, restart: Callable[[], None], tmp_path: Path) -> None:
    specs = numbers(6, name)
    jit.ensure(specs)
    assert [jit.function(s)(1) for s in specs] == [1, 2, 3, 4, 5, 6]
    assert jit.Counts.compiled == 6 and len(files(tmp_path)) == 6


def test_the_second_process_does_its_part(restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow kernels here leave time for it."""
    compile_here = jit._compile_here

    def wait(s: Spec) -> None:
        while not jit._cache_file(numbers(6)[5]).exists():
            threading.Event().wait(0.05)
        compile_here(s)

    monkeypatch.setattr(jit, "_compile_here", wait)
    jit.ensure(numbers(6))
    assert jit.Counts.compiled < 6 and jit.Counts.compiled + jit.Counts.loaded == 6


@pytest.mark.parametrize("broken", ["no start", "no interpreter"])
def test_where_there_can_be_no_second_process(
    broken: str, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python3" if broken == "no start" else "/bin/true")
    jit.ensure(numbers(5))
    assert jit.Counts.compiled == 5


def test_a_kernel_that_fails_takes_none_along(restart: Callable[[], None]) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="planted"):
        jit.ensure([*numbers(3), spec("fails", 0), *numbers(9)[3:]])
    assert threading.active_count() == before
    assert [jit.function(s)(0) for s in numbers(3)] == [0, 1, 2]
    jit.ensure(numbers(9))
    with pytest.raises(RuntimeError, match="planted"):
        jit.address(spec("fails", 0))


def test_a_process_that_is_killed_leaves_nothing_in_the_way(tmp_path: Path, restart: Callable[[], None]) -> None:
    victim = start(SECOND.replace('"number"', '"endless"'), tmp_path)
    assert victim.stdout is not None and victim.stdout.readline() == "compiling\n"
    victim.kill()
    victim.communicate()
    jit.ensure(numbers(2))
    assert jit.Counts.compiled == 2


def test_threads(restart: Callable[[], None]) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(jit.address(spec("number", 9)))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8 and len(set(found)) == 1 and jit.Counts.compiled == 1


def test_a_kernel_that_needs_numba_is_refused(restart: Callable[[], None]) -> None:
    with pytest.raises(AssertionError, match=r"allocates calls .*NRT_"):
        jit.address(spec("allocates"))


def test_settings_of_numba_that_do_not_work(restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    import numba.core.config

    jit.address(spec("number", 1))
    with monkeypatch.context() as patch:
        patch.setattr(numba.core.config, "DISABLE_JIT", 1)
        with pytest.raises(DeviceError, match="NUMBA_DISABLE_JIT"):
            jit.address(spec("number", 2))
    with monkeypatch.context() as patch:
        patch.setattr(numba.core.config, "CPU_NAME", None)
        patch.setattr(numba.core.config, "CPU_FEATURES", None)
        patch.setattr(jit, "target", lambda: ("x86-64-v2", "+fma"))
        with pytest.raises(DeviceError, match="Numba was used before for"):
            jit.address(spec("number", 3))
