"""Kernels are compiled by other processes: shared work, failures, interrupts, forks."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from planting import SECOND, SUPPORT, numbers, restart, run, spec, start

from pyggml import jit
from pyggml.errors import ComputeError, DeviceError
from pyggml.jit import compiling, machine, pool, worker

__all__ = ["restart"]  # a fixture


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


def first_line(log: Path, writer: "subprocess.Popen[str]") -> str:
    """As soon as it is whole: a file is there before anything is in it."""
    while "\n" not in (text := log.read_text() if log.exists() else ""):
        assert writer.poll() is None
        time.sleep(0.02)
    return text.partition("\n")[0]


def test_a_process_that_is_killed_leaves_nothing_in_the_way(tmp_path: Path, restart: Callable[[], None]) -> None:
    victim = start(SECOND.replace('"number"', '"slow"'), tmp_path, PLANTED_LOG=str(tmp_path / "log"))
    compiler = int(first_line(tmp_path / "log", victim).split()[1])
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
        first_line(log, process)
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
