"""Standard streams that are closed, full, or given up by their reader; files that cannot be written."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import bench, cli, inspection, perplexity, quantize
from pyggml_cli.entry import run

FULL = Path("/dev/full")
MODULES = {"cli": ["--help"], "inspection": ["MODEL"], "quantize": ["--help"], "bench": ["--help"]}


def command(module: str, args: list[str], shell: str) -> subprocess.CompletedProcess[str]:
    """A command whose streams a shell arranges."""
    line = f'"$0" -m pyggml_cli.{module} "$@" {shell}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=240,
    )


@pytest.mark.skipif(not FULL.is_char_device(), reason="there is no /dev/full here")
@pytest.mark.parametrize("module", MODULES)
def test_a_full_disk_behind_stdout(module: str, model: Path) -> None:
    args = [str(model) if arg == "MODEL" else arg for arg in MODULES[module]]
    done = command(module, args, f"> {FULL}")
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_closed_streams(model: Path) -> None:
    done = command("cli", ["--version"], ">&-")
    assert (done.returncode, done.stderr) == (1, "error: standard output: closed\n")
    done = command("cli", ["-m", "/none", "-p", "x"], "2>&-")
    assert (done.returncode, done.stdout) == (1, ""), "what belongs to stderr does not go to stdout"
    done = command("cli", ["-m", str(model), "-cnv"], "<&-")
    assert done.returncode == 0 and "Traceback" not in done.stderr, "an empty conversation"


@pytest.mark.skipif(not FULL.is_char_device(), reason="there is no /dev/full here")
def test_what_is_told_beside_the_text_ends_no_command_when_it_is_lost(model: Path) -> None:
    for shell in (f"2> {FULL}", "2> >(true)"):
        done = command("quantize", [str(model), "/dev/null", "q4_k"], shell)
        assert done.returncode == 0 and "/dev/null: written" in done.stdout, shell
    assert command("cli", ["-n", "many"], f"2> {FULL}").returncode == 2


@pytest.mark.skipif(not FULL.is_char_device(), reason="there is no /dev/full here")
def test_results_on_stderr_are_not_lost_in_silence(call: Callable[..., Any], model: Path, reference: None) -> None:
    with pytest.MonkeyPatch.context() as patched, FULL.open("w", buffering=1) as full:
        patched.setattr("sys.stderr", full)
        args = ("-m", model, "-p", "4", "-n", "0", "-r", "1", "--no-warmup", "-oe")
        assert [call(bench.main, *args, kind).code for kind in ("none", "csv")] == [0, 1]


def test_a_reader_who_has_had_enough(model: Path) -> None:
    done = command("cli", ["--help"], "| head -c 5")
    assert (done.stdout, done.stderr) == ("usage", "")
    done = command("inspection", ["--json", str(model)], "| head -c 1")
    assert (done.stdout, done.stderr) == ("{", "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_errors_without_a_file_are_those_of_stdout(
    number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyggml_cli.entry._drop_output", lambda: None)

    def failing(filename: str | None) -> Callable[[Any], int]:
        def fail(argv: Any) -> int:
            raise OSError(number, os.strerror(number), filename)

        return fail

    for filename, shown in ((None, "standard output"), ("a\udcffb", r"a\xffb"), ("", "''")):
        assert run(failing(filename), []) == 1
        assert capsys.readouterr().err == f"error: {shown}: {os.strerror(number)}\n"


def test_places_that_cannot_be_written(call: Callable[..., Any], model: Path, reference: None, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello world " * 99)
    score = [perplexity.main, "-m", model, "-f", text, "-c", 32, "--chunks", 1, "--save-all-logits"]
    convert = [quantize.main, model]
    go_on = [cli.main, "-m", model, "-p", "hello " * 5, "-n", 1, "--no-perf", "--prompt-cache"]
    for place, reason in ((tmp_path, "Is a directory"), (tmp_path / "none/file", "No such file or directory")):
        for args in ([*score, place], [*convert, place, "Q8_0"], [*go_on, place]):
            outcome = call(*args)
            assert outcome.code == 1 and outcome.err.splitlines()[-1] == f"error: {place}: {reason}", args
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for args in ([*score, tmp_path / "b"], [*convert, tmp_path / "q.gguf", "Q8_0"], [*go_on, tmp_path / "p"]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
        try:
            outcome = call(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert outcome.code == 1 and outcome.err.splitlines()[-1].endswith(": File too large"), args
        assert os.listdir(tmp_path) == ["text"], "nothing is left of it"


def test_too_small_a_context(call: Callable[..., Any], model: Path, reference: None) -> None:
    outcome = call(cli.main, "-m", model, "-p", "hello", "-c", 3)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1) and "a context of 3 is too small" in outcome.err


def test_what_is_no_model(call: Callable[..., Any], tmp_path: Path) -> None:
    for size in (0, 3, 100):
        (tmp_path / "file").write_bytes(b"GGUF"[:size] + bytes(max(0, size - 4)))
        for args in ([cli.main, "-p", "x", "-m"], [inspection.main], [quantize.main, "--dry-run"]):
            tail = ["Q8_0"] if args[0] is quantize.main else []
            outcome = call(*args, tmp_path / "file", *tail)
            assert outcome.code == 1 and outcome.err.startswith(f"error: {tmp_path}/file: "), args
            assert outcome.err.count("\n") == 1
