"""Texts that flags bring: from standard input, without an end, in encodings that cannot show them; shown by their tokens."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import cli, perplexity, quantize
from text_model import write_text_model

from pyggml import Llama
from pyggml.backend.reference import ReferenceDevice

ENDLESS = [
    (cli.main, ["-f", "/dev/zero"]),
    (cli.main, ["-bf", "/dev/zero"]),
    (cli.main, ["-p", "x", "--grammar-file", "/dev/zero"]),
    (cli.main, ["-p", "x", "-jf", "/dev/zero"]),
    (cli.main, ["-cnv", "-sysf", "/dev/zero"]),
    (cli.main, ["-cnv", "--chat-template-file", "/dev/zero"]),
    (perplexity.main, ["-f", "/dev/zero"]),
    (perplexity.main, ["-bf", "/dev/zero"]),
    (quantize.main, ["--tensor-type-file", "/dev/zero"]),
]


@pytest.mark.parametrize(("main", "args"), ENDLESS)
def test_a_file_without_an_end(
    call: Callable[..., Any], model: Path, reference: None, monkeypatch: pytest.MonkeyPatch, main: Any, args: list[str]
) -> None:
    monkeypatch.setattr("pyggml_cli.text_files.LARGEST", 5 << 20)
    where = [model, "q8_0"] if main is quantize.main else ["-m", model]
    outcome = call(main, *args, *where)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == f"error: /dev/zero: more than {5 << 20} bytes, too large for a text"


class Piped(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.mark.parametrize("flag", ["-f", "-bf"])
def test_standard_input(
    flag: str, call: Callable[..., Any], model: Path, reference: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = "hello wörld\n".encode()
    (tmp_path / "text").write_bytes(data * 5)
    for main, args in (
        (cli.main, ["-n", 2, "--temp", 0, "--no-perf", "-c", 256]),
        (perplexity.main, ["-c", 16, "--no-perf"]),
    ):
        outcomes = []
        for name in (tmp_path / "text", "-"):
            monkeypatch.setattr("sys.stdin", Piped(data * 5))
            outcomes.append(call(main, "-m", model, flag, name, *args))
        assert outcomes[0].code == 0 and outcomes[0].out == outcomes[1].out
    monkeypatch.setattr("sys.stdin", Piped(b"ab\xff"))
    outcome = call(cli.main, "-m", model, flag, "-", "-n", 0, "--no-perf")
    if flag == "-bf":
        assert (outcome.code, outcome.out, outcome.err) == (0, "ab\ufffd", "")
    else:
        assert outcome.code == 2 and outcome.err == "error: standard input: not UTF-8 text: byte 0xff at 2\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_that_lacks_characters_ends_no_command(encoding: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m\u0142del.gguf"
    path.write_bytes(model.read_bytes())
    text = tmp_path / "text"
    text.write_text("hello world " * 20)
    base = tmp_path / "base"
    commands = [
        ["bench", "-m", path, "-p", 8, "-n", 0, "-r", 1],
        ["bench", "-m", path, "-p", 8, "-n", 0, "-r", 1, "-o", "csv"],
        ["perplexity", "-m", path, "-f", text, "-c", 16, "--kl-divergence-base", base],
        ["perplexity", "-m", path, "--kl-divergence", "--kl-divergence-base", base],
        ["quantize", path, tmp_path / "\u0142.gguf", "q8_0"],
        ["inspection", path],
        ["cli", "-m", path, "-p", "h\u0142llo", "-n", 1],
        ["cli", "-m", path, "-cnv", "-st", "-p", "h\u0142llo", "-n", 1, "--verbose-prompt"],
    ]
    for module, *args in commands:
        done = subprocess.run(
            [sys.executable, "-m", f"pyggml_cli.{module}", *map(str, args)],
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr, (args, done.stderr[-2000:])


def test_the_prompt_of_a_conversation_is_shown_once(
    call: Callable[..., Any], model: Path, reference: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    outcome = call(
        cli.main, "-m", model, "-cnv", "--verbose-prompt", "-n", 1, "--no-perf", "--chat-template", "chatml", "-c", 256
    )
    assert outcome.code == 0 and outcome.err.count("number of tokens in prompt = ") == 1
    shown = [line.split(" -> ")[1].strip("'") for line in outcome.err.splitlines() if " -> " in line]
    assert "".join(shown).startswith("<|im_start|>user")  # the template's text too


def test_a_double_bos_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("pyggml.backend.cpu.CPUDevice", ReferenceDevice)
    path = write_text_model(tmp_path / "bos.gguf", add_bos=True)
    with Llama(path, verbose=False) as llm:
        with pytest.warns(RuntimeWarning, match="begins with BOS") as warned:
            llm("<|begin|>hello", max_tokens=1)
        assert len(warned) == 1 and not caplog.records
        llm.tokenize(b"<|begin|>hello", special=True)
        assert len(caplog.records) == 1  # nobody else tells it then
