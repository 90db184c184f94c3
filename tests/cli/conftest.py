"""What tests of the commands share: a small model, and calls of a command in this process or in one of its own."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from text_model import write_text_model

from pyggml.backend.reference import ReferenceDevice


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers whose vocabulary can spell any text; 64 tokens of context."""
    return write_text_model(tmp_path_factory.mktemp("cli") / "text.gguf")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands compute with NumPy: what they print does not depend on kernels."""
    monkeypatch.setattr("pyggml.backend.cpu.CPUDevice", ReferenceDevice)
    yield


@pytest.fixture(scope="session")
def sources(peer: Any) -> dict[str, str]:
    """The files in which llama.cpp describes the flags of its tools."""
    archive = peer.vendor.parents[1].with_name(f"{peer.vendor.parents[1].name}.tar.gz")
    paths = ("common/arg.cpp", "tools/llama-bench/llama-bench.cpp", "src/llama-model-loader.cpp")
    paths += ("tools/batched-bench/batched-bench.cpp", "common/download.cpp")
    wanted = {path.rpartition("/")[2]: f"llama.cpp/{path}" for path in paths}
    found: dict[str, str] = {}
    with tarfile.open(archive, "r|gz") as stream:
        for member in stream:
            for name, path in wanted.items():
                if member.name.endswith(path):
                    file = stream.extractfile(member)
                    assert file is not None
                    found[name] = file.read().decode()
            if len(found) == len(wanted):
                break
    assert found.keys() == wanted.keys()
    return found


@pytest.fixture(scope="session")
def arg_cpp(sources: dict[str, str]) -> str:
    return sources["arg.cpp"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call a command's main with these arguments, in this process."""

    def run(main: Callable[[list[str]], int], *args: object) -> Outcome:
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def spawn(module: str, *args: object, **options: Any) -> "subprocess.Popen[str]":
    """Start a command as a process of its own."""
    command = [sys.executable, "-m", f"pyggml_cli.{module}", *map(str, args)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8", **options}
    options["env"] = {**os.environ, "PYTHONUNBUFFERED": "1", **options.get("env", {})}
    return subprocess.Popen(command, **options)


@pytest.fixture(name="spawn")
def spawn_fixture() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """`spawn`, and whatever is still running at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(module: str, *args: object, **options: Any) -> "subprocess.Popen[str]":
        started.append(spawn(module, *args, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr, process.stdin):
            if stream is not None:
                stream.close()
