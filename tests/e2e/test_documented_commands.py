"""Commands that llama.cpp's documentation shows, pasted: the program's name and the model's path changed, no more.

Each runs, or says in one line why not. What is added to keep it short is in a column of its own.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

MODEL = "model.gguf"


class Shown(NamedTuple):
    """A command of `page`, what the user types, what keeps it short, and what comes of it: code, stdout, stderr."""

    page: str
    command: str
    typed: str = ""
    short: str = "-n 4"
    code: int = 0
    out: str = ""
    err: str = ""


COMMANDS = [
    Shown(
        "tools/completion/README.md",
        'llama-completion -m model.gguf -no-cnv --prompt "Once upon a time"',
        out="Once upon a time",
    ),
    Shown("tools/completion/README.md", "llama-completion -m model.gguf --chat-template gemma", typed="Hi\n"),
    Shown("tools/completion/README.md", "llama-completion -m model.gguf --jinja", typed="Hi\n", err="--jinja makes no"),
    Shown(
        "tools/completion/README.md",
        'llama-completion -m model.gguf --jinja --single-turn -sys "You are a helpful assistant" -p "Hello"',
        short="-n 4 --temp 0",
        out="Hello",
    ),
    Shown(
        "tools/completion/README.md",
        "llama-completion -m model.gguf --ignore-eos -n -1",
        typed="Hi\n",
        short="-c 64",
        err="context full",
    ),
    Shown(
        "tools/completion/README.md",
        'llama-completion -m model.gguf -r "User:" --in-prefix " "',
        typed="Hi\n",
    ),
    Shown(
        "tools/completion/README.md",
        'llama-completion -m model.gguf -r "User:" --in-prefix " " --in-suffix "Assistant:"',
        typed="Hi\n",
    ),
    Shown(
        "docs/build.md",
        'llama-cli -m model.gguf -p "Building a website can be done in 10 steps:" -n 50',
        out="Building a website can be done in 10 steps:",
    ),
    Shown("docs/build.md", "llama-cli -m model.gguf -ngl 100 -c 16384 -t 10 -n -2 -cnv", typed="Hi\n", short="-n 4"),
    Shown(
        "docs/backend/CANN.md",
        'llama-cli -m model.gguf -p "Building a website can be done in 10 simple steps:" -n 400 -e -ngl 33 -sm none -mg 0',
        out="Building a website can be done in 10 simple steps:",
    ),
    Shown(
        "grammars/README.md",
        "llama-cli -m model.gguf --grammar-file grammars/some-grammar.gbnf -p 'Some prompt'",
        out="Some prompt- ",
        short="-n 4 --temp 0",
    ),
    Shown(
        "grammars/README.md",
        """llama-cli -hfr bartowski/Phi-3-medium-128k-instruct-GGUF -hff Phi-3-medium-128k-instruct-Q8_0.gguf
        -j '{"type": "array", "items": {"type": "object"}, "minItems": 10}' -p 'Generate a list'""",
        code=1,  # nobody is there to give it
        err="error: bartowski/Phi-3-medium-128k-instruct-GGUF: it is not in the cache; the hub cannot be reached",
    ),
    Shown(
        "docs/multi-gpu.md",
        "llama-cli -m model.gguf -sm tensor -ctk f16 -ctv f16",
        code=2,
        err="error: -sm 'tensor': tensors are not cut into parts",
    ),
    Shown("docs/multi-gpu.md", "llama-cli -m model.gguf -ts 3,1", typed="Hi\n"),
    Shown("docs/multi-gpu.md", "llama-cli --list-devices", short="", out="Available devices:\n  CPU: "),
    Shown("docs/completions.md", "llama-cli --completion-bash", short="", out="complete -o default -W '"),
]


@pytest.mark.parametrize("shown", COMMANDS, ids=lambda shown: " ".join(shown.command.split()[1:])[-40:])
def test_a_command_runs_or_says_in_one_line_why_not(shown: Shown, smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / MODEL).symlink_to(smollm2)
    (tmp_path / "grammars").mkdir()
    (tmp_path / "grammars/some-grammar.gbnf").write_text('root ::= ("- " item)+\nitem ::= [^\\n]+ "\\n"\n')
    program, *args = shlex.split(shown.command)
    assert program in ("llama-cli", "llama-completion")
    found = subprocess.run(
        [sys.executable, "-m", "pyggml_cli.cli", *args, *shlex.split(shown.short)],
        input=shown.typed,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_ARG_", "HF_"))},
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(tmp_path / "hub"),
        },
    )
    assert (found.returncode, "Traceback" in found.stderr) == (shown.code, False), found.stderr
    assert found.stdout.startswith(shown.out) if shown.code == 0 else found.stdout == ""
    assert shown.err in found.stderr
    if shown.code:
        assert found.stderr.count("\n") == 1
    elif shown.short:
        assert len(found.stdout.strip()) > len(shown.out.strip()) or shown.out == "Hello"


def test_there_are_ten_that_run() -> None:
    assert sum(shown.code == 0 for shown in COMMANDS) >= 10
