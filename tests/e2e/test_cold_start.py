"""Kernels are compiled once on a machine: by one of two programs that start together, and never again.

A log that every process of the test writes to says what was really compiled.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pyggml import jit
from pyggml.backend.cpu import CPUDevice
from pyggml.jit import store
from pyggml.model.usual import usual_kernels

LOGGING = """
import os
from pyggml.jit import compiling
compile = compiling.compile_spec
def logged(spec):
    with open(os.environ["COMPILED"], "a") as log:
        log.write(f"{os.getpid()} {spec.label}\\n")
    return compile(spec)
compiling.compile_spec = logged
"""
"""Python runs a `sitecustomize` that it finds on its path in every process: also in those that compile."""

COUNTING = """
import sys
from pyggml_cli.cli import main
code = main(sys.argv[1:])
from pyggml import jit
print("counts", jit.Counts.compiled, jit.Counts.loaded, "numba" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


class Machine:
    """A cache folder that begins empty, and the log of what was compiled into it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.cache, self.log = folder / "cache", folder / "compiled"
        self.log.touch()
        (folder / "sitecustomize.py").write_text(LOGGING)
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.env = {**os.environ, "PYGGML_CACHE": str(self.cache), "COMPILED": str(self.log), "PYTHONPATH": path}
        self.command = [sys.executable, "-c", COUNTING, "-m", str(model), "-p", "Hello, my name is", "-n", "4"]

    def start(self) -> "subprocess.Popen[str]":
        command = [*self.command, "--temp", "0"]
        return subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def compiled(self) -> list[str]:
        """Names of the kernels, in the order in which any process compiled them."""
        return [line.split()[1] for line in self.log.read_text().splitlines()]

    def files(self) -> dict[str, tuple[int, int]]:
        return {
            path.stem.rpartition(".")[0]: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in self.cache.glob("kernels/*/*.o")
        }


class Ended:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.out, self.err = process.communicate(timeout=300)
        assert process.returncode == 0, self.err
        words = self.err.splitlines()[-1].split()
        self.n_compiled, self.n_loaded, self.numba = int(words[1]), int(words[2]), words[3] == "True"


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> tuple[Machine, list[Ended]]:
    """The machine after two programs were started on it at the same time."""
    machine = Machine(tmp_path_factory.mktemp("machine"), smollm2)
    processes = [machine.start(), machine.start()]
    return machine, [Ended(process) for process in processes]


def test_two_programs_at_once_compile_each_kernel_once_between_them(cold: tuple[Machine, list[Ended]]) -> None:
    machine, programs = cold
    compiled = machine.compiled()
    assert len(compiled) > 10 and len(set(compiled)) == len(compiled)
    assert set(compiled) == set(machine.files())
    assert programs[0].out == programs[1].out
    assert all("compiling kernels, once ...\n" in program.err for program in programs), "both say what they wait for"
    assert not any(program.numba for program in programs)
    for program in programs:
        assert re.search(r"compile time = +\d+\.\d\d ms / +\d+ kernels", program.err)
        assert program.err.count("compiling kernels") == 1, "prompt and text have one wait between them"


def test_a_second_start_compiles_nothing(cold: tuple[Machine, list[Ended]]) -> None:
    machine, programs = cold
    before, files = machine.compiled(), machine.files()
    warm = Ended(machine.start())
    assert (warm.n_compiled, warm.n_loaded, warm.numba) == (0, len(files), False)
    assert machine.compiled() == before and machine.files() == files
    assert warm.out == programs[0].out and "compil" not in warm.err


def test_a_lost_file_is_compiled_again(cold: tuple[Machine, list[Ended]]) -> None:
    """A mutant: what the test above looks at does change when something is compiled."""
    machine, _ = cold
    before, files = machine.compiled(), machine.files()
    victim = min(machine.cache.glob("kernels/*/*.o"), key=lambda path: path.stat().st_size)
    victim.unlink()
    again = Ended(machine.start())
    assert (again.n_compiled, again.n_loaded) == (1, len(files) - 1)
    assert machine.compiled() == [*before, victim.stem.rpartition(".")[0]] and machine.files() != files


def test_a_folder_that_cannot_be_written_costs_time_and_not_the_run(
    cold: tuple[Machine, list[Ended]], command: Callable[..., Any], smollm2: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    env = {"PYGGML_CACHE": str(tmp_path / "file" / "cache")}
    process = command(*("cli", "-m", smollm2, "-p", "Hello, my name is", "-n", 4, "--temp", 0, "--no-perf"), env=env)
    assert process.wait() == 0 and process.out == cold[1][0].out
    lines = process.err.splitlines()
    assert len(lines) == 2 and "compiling kernels, once ..." in lines
    (said,) = (line for line in lines if str(tmp_path / "file") in line)
    assert "Not a directory" in said and said.endswith("for this run only")


def until(process: Any, said: Callable[[], str], words: str) -> None:
    """Wait for words of a process; one that ends before is a failure."""
    while words not in said():
        assert process.process.poll() is None, (process.out, process.err)
        time.sleep(0.02)


def test_ctrl_c_while_kernels_are_compiled(command: Callable[..., Any], smollm2: Path, tmp_path: Path) -> None:
    env = {"PYGGML_CACHE": str(tmp_path)}
    process = command("cli", "-m", smollm2, "-p", "Hello, my name is", "-n", 4, env=env)
    until(process, lambda: process.err, "compiling kernels")
    process.process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.err.endswith("\ninterrupted\n") and "Traceback" not in process.err


def test_ctrl_c_in_a_conversation_ends_the_turn(command: Callable[..., Any], smollm2: Path, tmp_path: Path) -> None:
    env = {"PYGGML_CACHE": str(tmp_path)}
    process = command("cli", "-m", smollm2, "-cnv", "-p", "Hello", "-n", 4, "--no-warmup", env=env)
    until(process, lambda: process.err, "compiling kernels")
    time.sleep(2.0)  # past the threads' own kernels, which come before the conversation
    process.process.send_signal(signal.SIGINT)
    assert process.wait() in (0, 130)
    assert "interrupted" in process.err and "Traceback" not in process.err


PYTHON = """
import sys
from pyggml import Llama
with Llama(sys.argv[1], n_ctx=64) as llm:
    for _ in range(2):
        print(llm("Hello, my name is", max_tokens=2, temperature=0)["choices"][0]["text"])
"""


def test_python_says_once_that_kernels_are_compiled(
    cold: tuple[Machine, list[Ended]], tmp_path: Path, smollm2: Path
) -> None:
    """On a machine that lacks two of those that it needs."""
    shutil.copytree(cold[0].cache, tmp_path, dirs_exist_ok=True)
    for path in sorted(tmp_path.glob("kernels/*/*.o"), key=lambda path: path.stat().st_size)[:2]:
        path.unlink()
    env = {**os.environ, "PYGGML_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", PYTHON, str(smollm2)]
    for lines in (1, 0):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
        assert len(re.findall("pyggml: compiling .* kernels?, which later starts find on disk", done.stderr)) == lines


LACKED = 6  # kernels that a server compiles, in place of all that are usual


def usual_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Those of the kernels that a server wants before it listens, in the cache of the tests."""
    wanted: dict[jit.Spec, None] = {}
    prepare = jit.prepare

    def noted(specs: Iterable[jit.Spec]) -> list[jit.Job]:
        wanted.update(dict.fromkeys(specs := list(specs)))
        return prepare(specs)

    monkeypatch.setattr(jit, "prepare", noted)
    usual_kernels(CPUDevice())
    jit.ensure(list(wanted))
    return [store.folder().path / store.file_name(spec) for spec in wanted]


def test_a_server_compiles_before_it_listens(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to end meanwhile it does; a later start finds what was made, compiles what is lacking, and the next one nothing."""
    env = {"PYGGML_CACHE": str(tmp_path)}
    process = command("rpc_server", "-p", 0, "-d", "cpu", env=env)
    until(process, lambda: process.out, "compiling")
    process.process.send_signal(signal.SIGINT)
    assert process.wait() == 0 and re.fullmatch(r"compiling \d\d kernels, [^\n]*\n", process.out) and process.err == ""
    (folder,) = tmp_path.glob("kernels/*")
    files = usual_files(monkeypatch)
    assert len(files) > 40
    for file in files[:-LACKED]:
        shutil.copy(file, folder)
    for file in files[-LACKED:]:  # which the first start may have got to
        (folder / file.name).unlink(missing_ok=True)
    process = command("rpc_server", "-p", 0, "-d", "cpu", env=env)
    process.wait_for(rf"compiling {LACKED} kernels[^\n]*\nusing CPU backend\n(.|\n)*MiB free", 300)
    process.process.terminate()
    assert process.wait() == 0 and {file.name for file in files} <= {path.name for path in folder.glob("*.o")}
    process = command("rpc_server", "-p", 0, "-d", "cpu", env=env)
    process.wait_for(r"^using CPU backend\n(.|\n)*MiB free", 300)
    process.process.terminate()
    assert process.wait() == 0 and "compiling" not in process.out
