"""Models that are no regular file, or become shorter while they are used: one line, never a wait or a bus error."""

import ctypes
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_devices import FakeBuffer, FakeDevice
from pyggml_cli import bench, cli, embedding, inspection, perplexity, quantize
from text_model import write_text_model

from pyggml import Llama
from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import GGUFError
from pyggml.gguf import GGUFFile
from pyggml.model.model import Model

CALLS: list[tuple[Any, list[str]]] = [
    (cli.main, ["-m", "{}", "-p", "x"]),
    (cli.main, ["-m", "{}", "-cnv"]),
    (bench.main, ["-m", "{}"]),
    (perplexity.main, ["-m", "{}", "-p", "x"]),
    (embedding.main, ["-m", "{}", "-p", "x"]),
    (quantize.main, ["{}", "out.gguf", "q8_0"]),
    (inspection.main, ["{}"]),
]


@pytest.mark.parametrize(("main", "args"), CALLS)
def test_a_pipe_is_no_model(call: Callable[..., Any], tmp_path: Path, main: Any, args: list[str]) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    outcome = call(main, *(arg.format(tmp_path / "model.gguf") for arg in args))
    assert (outcome.code, outcome.err) == (1, f"error: {tmp_path / 'model.gguf'}: not a regular file\n")


def test_a_pipe_is_no_part_of_a_model_nor_anything_else_to_read(
    tmp_path: Path, call: Callable[..., Any], model: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GGUFError, match=r"pipe: not a regular file"):
        GGUFFile.open(tmp_path / "pipe")
    with pytest.raises(GGUFError, match=r"zero: not a regular file"):
        GGUFFile.open("/dev/zero")
    outcome = call(perplexity.main, "-m", model, "--kl-divergence", "--kl-divergence-base", tmp_path / "pipe")
    assert outcome.code == 1 and "pipe: not a regular file" in outcome.err


def test_a_file_that_was_cut_is_named_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyggml.backend.cpu.CPUDevice", ReferenceDevice)
    path = write_text_model(tmp_path / "model.gguf")
    size = path.stat().st_size
    with Llama(path, verbose=False) as llm, Llama(path, verbose=False, use_mmap=False) as copied:
        llm("hello", max_tokens=1)
        expected = copied("hello", max_tokens=4, temperature=0)["choices"][0]["text"]
        os.truncate(path, size // 2)
        with pytest.raises(
            GGUFError, match=rf"model\.gguf: was cut from {size} to {size // 2} bytes while it was in use"
        ):
            llm("world", max_tokens=1)
        assert copied("hello", max_tokens=4, temperature=0)["choices"][0]["text"] == expected  # it needs no file


def test_a_file_that_was_replaced_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyggml.backend.cpu.CPUDevice", ReferenceDevice)
    path = write_text_model(tmp_path / "model.gguf")
    with Llama(path, verbose=False) as llm:
        expected = llm("hello", max_tokens=4, temperature=0)["choices"][0]["text"]
        (tmp_path / "short").write_bytes(b"short")
        os.replace(tmp_path / "short", path)
        assert llm("hello", max_tokens=4, temperature=0)["choices"][0]["text"] == expected


@pytest.mark.parametrize("refused", [False, True])
def test_a_file_that_is_cut_while_it_is_uploaded(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tensors; or in one that the system then will not send."""
    path = write_text_model(tmp_path / "model.gguf")
    write, n = FakeBuffer.set, 0

    def cut(*args: Any, **options: Any) -> None:
        nonlocal n
        n += 1
        write(*args, **options)
        if n == 5:
            os.truncate(path, 4096)
            if refused:
                raise OSError(14, "Bad address")

    monkeypatch.setattr(FakeBuffer, "set", cut)
    with pytest.raises(GGUFError, match=r"to 4096 bytes while it was in use"):
        Model.load(path, cpu=ReferenceDevice(), devices=[FakeDevice()])
    assert n == 5


DURING = """
import os, sys
from pyggml_cli import {command}
from pyggml.gguf import GGUFFile
from pyggml.model.model import Model
path = sys.argv[1]

def cut(*args, **options):
    os.truncate(path, 4096)
    return plain(*args, **options)

plain = {place}
{place} = cut
sys.exit({command}.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("command", "place", "args"),
    [
        ("cli", "Model.check_file", ["-m", "{}", "-p", "hello", "-n", "4", "-t", "2"]),
        ("cli", "Model.check_file", ["-m", "{}", "-p", "hello", "-n", "4", "-t", "1"]),
        ("bench", "Model.check_file", ["-m", "{}", "-p", "8", "-n", "0"]),
        ("cli", "Model._check_all_read", ["-m", "{}", "-p", "hello", "--check-tensors", "--no-mmap"]),
        ("cli", "GGUFFile.fingerprint", ["-m", "{}", "-p", "hello", "-n", "1", "--prompt-cache", "{}.state"]),
    ],
)
def test_a_file_that_is_cut_in_the_middle(tmp_path: Path, command: str, place: str, args: list[str]) -> None:
    """The check is passed and then the file is cut: what reads it next meets a bus error."""
    path = write_text_model(tmp_path / "model.gguf")
    script = DURING.format(command=command, place=place)
    if place == "Model.check_file":
        script = script.replace("    return plain(*args, **options)", "    return None")
    run = [sys.executable, "-c", script, str(path), *(arg.format(path) for arg in args)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done
    assert done.stderr.endswith(f"error: {path}: was cut from {size_of(path)} to 4096 bytes while it was in use\n")


def size_of(path: Path) -> int:
    whole = write_text_model(path.with_name("whole.gguf"))
    return whole.stat().st_size


def test_quantising_a_file_that_is_cut(tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "model.gguf")
    script = textwrap.dedent("""
        import os, sys
        from pyggml_cli import quantize
        import pyggml.quantize as q
        plain = q.run
        q.run = lambda *args: (os.truncate(sys.argv[1], 4096), plain(*args))[1]
        sys.exit(quantize.main(sys.argv[1:]))
    """)
    run = [sys.executable, "-c", script, str(path), str(tmp_path / "out.gguf"), "q8_0"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "to 4096 bytes while it was in use" in done.stderr, done
    assert not (tmp_path / "out.gguf").exists()


def test_other_bus_errors_are_a_line_too(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, signal
        from pyggml_cli.bus_errors import explain_bus_errors
        with explain_bus_errors():
            os.kill(os.getpid(), signal.SIGBUS)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: bus error: a file that is mapped was cut or cannot be read, or memory is broken\n"
    outside = script.replace("    os.kill", "    pass\nos.kill")
    assert subprocess.run([sys.executable, "-c", outside], timeout=60).returncode < 0  # the handler of before is back


def test_several_may_explain_bus_errors_and_end_in_any_order() -> None:
    from pyggml_cli import bus_errors

    def ours() -> bool:
        handler = bus_errors._install(None)
        bus_errors._install(handler)
        return handler == ctypes.cast(bus_errors._die_in_c, ctypes.c_void_p).value

    first, second = bus_errors.explain_bus_errors(), bus_errors.explain_bus_errors()
    assert not ours()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert ours()
    second.__exit__(None, None, None)
    assert not ours()
