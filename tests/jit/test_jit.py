"""The compiler's door: levels, the cache of object files, processes that compile, failures. Folders that cannot be used
or trusted: test_kernel_cache.py.
"""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from levels import TARGETS
from planting import SUPPORT, numbers, restart, run, spec, start

from pyggml import jit
from pyggml.errors import ComputeError, DeviceError
from pyggml.jit import Spec, compiling, machine, pool, store, worker

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

SECOND = """
import sys
from pyggml import jit
from pyggml.jit import Spec
specs = [Spec("primitive_kernels.planted", "number", (n,), "i64(i64)") for n in range(2)]
jit.ensure(specs)
print(jit.Counts.compiled, jit.Counts.loaded, [jit.function(s)(5) for s in specs], "numba" in sys.modules)
"""


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

    def compile_anew(spec: Spec) -> str:
        compiled.append(spec)
        return texts[numbers(2).index(spec)]

    monkeypatch.setattr(compiling, "assembly", compile_anew)
    restart()
    assert [jit.assembly(one), jit.assembly(other)] == texts and not compiled
    jit.ensure([other])
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


# ---- compiling


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    script = SECOND.replace("range(2)", "range(8)")
    log = tmp_path / "log"
    both = [start(script, tmp_path, PLANTED_LOG=str(log)) for _ in range(2)]
    outputs = [p.communicate(timeout=300) for p in both]
    assert all("[5, 6, 7, 8, 9, 10, 11, 12]" in out for out, _ in outputs), outputs
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == [str(n) for n in range(8)]


def test_progress(restart: Callable[[], None]) -> None:
    """Ten times a second, also while nothing is finished."""
    calls: list[tuple[int, int, str]] = []
    jit.on_compile(lambda *call: calls.append(call))
    try:
        jit.ensure(numbers(6))
        restart()
        jit.ensure(numbers(6))
    finally:
        jit.on_compile(None)
    done, total, labels = zip(*calls, strict=True)
    assert set(total) == {6} and list(done) == sorted(done) and calls[-1] == (6, 6, "")
    assert done.count(6) == 1 and set(labels[:-1]) <= {s.label for s in numbers(6)}
    assert done.count(0) > 1, "nothing was told before the first kernel was done"


def test_whoever_shows_no_progress_says_so_once(restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "QUIET", 0.0)
    said: list[str] = []
    jit.announce(said.append)
    try:
        jit.ensure(numbers(2))
        jit.ensure(numbers(4))
    finally:
        jit.announce(None)
    assert len(said) == 1 and said[0].startswith("compiling 2 kernels")


def test_numba_stays_out_of_a_process_that_has_kernels_compiled(tmp_path: Path) -> None:
    """Its memory is the compiling process's. (ru_maxrss would count the process that started it, before exec.)"""
    script = SECOND + "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0][:-3])"
    first, memory = run(script, tmp_path).splitlines()
    assert first == "2 0 [5, 6] False" and int(memory) < 130


def test_several_processes_compile(
    restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool, "_cpus", lambda: 2)
    monkeypatch.setenv("PLANTED_LOG", str(tmp_path / "log"))
    jit.ensure(numbers(6, "slow"))
    assert len({line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}) == 2
    assert jit.Counts.compiled == 6


def test_prepare_does_not_wait(restart: Callable[[], None]) -> None:
    """What was begun is not begun again by who waits for it."""
    jobs = jit.prepare(numbers(2, "slow"))
    assert len(jobs) == 2 and not all(job.done.is_set() for job in jobs)
    jit.ensure(numbers(2, "slow"))
    assert all(job.done.is_set() for job in jobs) and jit.Counts.compiled == 2


@pytest.mark.parametrize("broken", ["no start", "no interpreter", "no package", "ends at once"])
def test_where_there_can_be_no_second_process(
    broken: str, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executable = tmp_path / "python3"
    executable.write_text("#!/bin/sh\nexit 3\n")
    executable.chmod(0o755)
    if broken == "no package":
        monkeypatch.setattr(worker, "SERVE", "pass")
    else:
        names = {"no start": "/nowhere/python3", "no interpreter": "/bin/true", "ends at once": str(executable)}
        monkeypatch.setattr(sys, "executable", names[broken])
    jit.ensure(numbers(5))
    assert jit.Counts.compiled == 5 and [jit.function(s)(1) for s in numbers(5)] == [1, 2, 3, 4, 5]


def test_a_process_that_dies_once_is_replaced(
    restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLANTED_LOG", str(tmp_path / "log"))
    specs = numbers(3, "deadly_once")
    jit.ensure(specs)
    assert [jit.function(s)(1) for s in specs] == [1, 2, 3] and jit.Counts.compiled == 3


def test_a_kernel_that_kills_the_compiler_is_named(restart: Callable[[], None]) -> None:
    with pytest.raises(DeviceError, match=r"deadly-0: the process that compiles ended with code 3"):
        jit.address(spec("deadly", 0))
    assert jit.function(spec("number", 0))(5) == 5


def test_a_kernel_that_fails_takes_none_along(restart: Callable[[], None]) -> None:
    with pytest.raises(RuntimeError, match="planted") as raised:
        jit.ensure([*numbers(3), spec("fails", 0), *numbers(9)[3:]])
    assert "primitive_kernels" in raised.value.__notes__[0], "where it happened is told"
    assert [jit.function(s)(0) for s in numbers(3)] == [0, 1, 2]
    jit.ensure(numbers(9))
    with pytest.raises(RuntimeError, match="planted"):
        jit.address(spec("fails", 0))


def test_a_process_that_is_killed_leaves_nothing_in_the_way(tmp_path: Path, restart: Callable[[], None]) -> None:
    victim = start(SECOND.replace('"number"', '"slow"'), tmp_path, PLANTED_LOG=str(tmp_path / "log"))
    while not (tmp_path / "log").exists():
        assert victim.poll() is None
        time.sleep(0.02)
    compiler = int((tmp_path / "log").read_text().split()[1])
    victim.kill()
    victim.communicate()
    for _ in range(500):
        if not Path(f"/proc/{compiler}").exists():
            break
        time.sleep(0.02)
    else:
        pytest.fail("the process that compiled outlives the one that wanted it")
    jit.ensure(numbers(2))
    assert jit.Counts.compiled == 2


HOLDING = """
import sys
from pyggml.jit import Spec, pool
specs = [Spec("primitive_kernels.planted", "number", (n,), "i64(i64)") for n in range(2)]
with pool.claim_kernel(specs[0]) as first, pool.claim_kernel(specs[1]) as second:
    print(first.name, second.name, flush=True)
    sys.stdin.read()
"""


def test_a_program_that_holds_the_lock_and_stands_still_keeps_nobody_waiting(
    tmp_path: Path, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was stopped with Ctrl-Z. Kernels that it does not hold need no patience at all."""
    monkeypatch.setattr(pool, "PATIENCE", 3600.0)
    everything = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDING], env=everything, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "OURS OURS\n"
        other.send_signal(signal.SIGSTOP)
        try:
            assert jit.function(spec("number", 5))(5) == 10
            (held,) = jit.prepare([spec("number", 0)])
            assert not held.done.wait(1.0), "the lock is not heeded"
            monkeypatch.setattr(pool, "PATIENCE", 0.5)
            assert held.done.wait(60) and jit.function(spec("number", 0))(5) == 5
        finally:
            other.kill()


def test_threads(restart: Callable[[], None]) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(jit.address(spec("number", 9)))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8 and len(set(found)) == 1 and jit.Counts.compiled == 1


def test_others_link_while_a_kernel_is_compiled(restart: Callable[[], None]) -> None:
    jit.ensure(numbers(2))
    restart()
    (job,) = jit.prepare([spec("slow", 0)])
    assert [jit.function(s)(5) for s in numbers(2)] == [5, 6] and not job.done.is_set()


def test_interrupt_ends_the_waiting_and_not_the_work(restart: Callable[[], None]) -> None:
    timer = threading.Timer(0.3, jit.interrupt)
    timer.start()
    with pytest.raises(ComputeError, match="interrupted, while 1 kernels"):
        jit.ensure([spec("slow", 0)])
    timer.join()
    assert jit.function(spec("slow", 0))(5) == 5 and jit.Counts.compiled == 1


FORKING = """
import os, sys
from pyggml import jit
from pyggml.jit import Spec
one, other = (Spec("primitive_kernels.planted", "number", (n,), "i64(i64)") for n in range(2))
assert jit.function(one)(5) == 5
child = os.fork()
print("child" if child == 0 else "parent", jit.function(one)(5), jit.function(other)(5), flush=True)
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_compiles_too(tmp_path: Path) -> None:
    said = run("import warnings; warnings.simplefilter('ignore')\n" + FORKING, tmp_path)
    assert sorted(said.splitlines()) == ["child 5 6", "parent 5 6"]


WAITING = """
import sys
from pyggml import jit
from pyggml.jit import Spec
print("waiting", flush=True)
jit.ensure([Spec("primitive_kernels.planted", "endless", (n,), "i64(i64)") for n in range(4)])
"""


def test_ctrl_c_ends_the_waiting_and_the_work(tmp_path: Path) -> None:
    """To the whole group of processes, as a terminal sends it."""
    everything = {**os.environ, "PYGGML_CACHE": str(tmp_path), "PYTHONPATH": str(SUPPORT)}
    log = tmp_path / "log"
    everything["PLANTED_LOG"] = str(log)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, env=everything, stdout=pipe, stderr=pipe, text=True, process_group=0) as process:
        while not log.exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and err.count("Traceback") == 1 and err.endswith("KeyboardInterrupt\n")
    for line in log.read_text().splitlines():
        assert not Path(f"/proc/{line.split()[1]}").exists(), "a compiling process is left"


def test_a_kernel_that_needs_numba_is_refused(restart: Callable[[], None]) -> None:
    with pytest.raises(AssertionError, match=r"allocates calls .*NRT_"):
        jit.address(spec("allocates"))


def test_settings_of_numba_that_do_not_work(restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    import numba.core.config

    compiling.compile_spec(spec("number", 1))
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")
        with pytest.raises(DeviceError, match="NUMBA_DISABLE_JIT"):
            jit.address(spec("number", 2))
    with monkeypatch.context() as patch:
        patch.setattr(numba.core.config, "CPU_NAME", None)
        patch.setattr(numba.core.config, "CPU_FEATURES", None)
        patch.setattr(machine, "target", lambda: ("x86-64-v2", "+fma"))
        with pytest.raises(DeviceError, match="Numba was used before for"):
            compiling.compile_spec(spec("number", 3))
