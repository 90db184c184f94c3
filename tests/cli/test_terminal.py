"""What names, models and templates say never commands the terminal: on stderr control characters are shown, and a
model's text loses them where stdout is a terminal, and only there.
"""

import io
import logging
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from pyggml_cli import bench, cli, entry, inspection, perplexity, quantize, rpc_server, terminal
from text_model import write_text_model

TITLE = "\x1b]0;pwned\x07"
SHOWN = "\\x1b]0;pwned\\x07"
MAINS = {"cli": cli, "bench": bench, "perplexity": perplexity, "quantize": quantize, "inspection": inspection}


# ---- which characters


def test_every_control_character_is_shown_or_dropped_but_line_breaks_and_tabs() -> None:
    for code in range(0x3000):
        char = chr(code)
        control = unicodedata.category(char) == "Cc" and char not in "\n\t"
        turns = char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        assert terminal.plain(f"a{char}b") == ("ab" if control else f"a{char}b"), hex(code)
        assert (terminal.visible(char) != char) == (control or turns), hex(code)
        assert terminal.visible(char).isprintable() or char in "\n\t" or not (control or turns)


def test_only_what_commands_is_touched() -> None:
    text = "Grüße, 你好 🙂\n\tשלום"
    assert terminal.visible(text) == terminal.plain(text) == text
    assert terminal.visible(TITLE) == SHOWN and terminal.plain(TITLE) == "]0;pwned"


def test_our_own_bars_are_not_shown_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.shown_controls():
        print("\x1b[1m", end="", file=terminal.raw(sys.stderr))
        print("\x1b[2m", end="", file=sys.stderr)
        sys.stderr.writelines(["\x07", "x"])
    assert capsys.readouterr().err == "\x1b[1m\\x1b[2m\\x07x"
    assert not isinstance(sys.stderr, terminal._Visible)


# ---- what is said about foreign things


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model file in which every text that we do not need holds the escape sequence; `changes` are further keys."""
    folder = tmp_path_factory.mktemp("hostile")
    source = write_text_model(folder / "source.gguf")

    def make(name: str, architecture: str = "llama", tensor: str = "", **changes: str) -> Path:
        reader = gguf.GGUFReader(source)
        writer = gguf.GGUFWriter(folder / f"{name}.gguf", architecture)
        keys = {f"tokenizer.{key.replace('__', '.')}": text for key, text in changes.items()}
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name in ("general.architecture", "tokenizer.chat_template"):
                continue
            value, kind = field.contents(), field.types[0]
            if field.name == "general.name":
                value = f"{TITLE}name"
            if field.name == "tokenizer.ggml.tokens":
                value = [TITLE if token == "hello" else token for token in value]
            value = keys.pop(field.name, value)
            if kind == gguf.GGUFValueType.ARRAY:
                writer.add_array(field.name, value)
            else:
                writer.add_key_value(field.name, value, kind)
        for key, text in keys.items():
            writer.add_string(key, text)
        writer.add_string(f"general.{TITLE}", TITLE)
        for info in reader.tensors:
            writer.add_tensor(
                tensor if info.name == "output_norm.weight" and tensor else info.name, np.array(info.data)
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return folder / f"{name}.gguf"

    return make


def test_texts_of_a_file(
    hostile: Callable[..., Path], call: Callable[..., Any], reference: None, tmp_path: Path
) -> None:
    """Commands that succeed on such a file, both streams."""
    model = hostile("texts")
    (tmp_path / "text").write_text("hello world " * 40)
    calls = [
        (inspection.main, "--full", model),
        (inspection.main, "--json", model),
        (quantize.main, model, tmp_path / "out.gguf", "q8_0"),
        (bench.main, "-m", model, "-p", 4, "-n", 2, "-r", 1),
        (perplexity.main, "-m", model, "-f", tmp_path / "text", "-c", 32, "--chunks", 1),
        (cli.main, "-m", model, "-p", "hi", "-n", 1, "--verbose-prompt"),
    ]
    for main, *args in calls:
        outcome = call(main, *args)
        assert outcome.code == 0, (args, outcome.err)
        assert "\x1b" not in outcome.out + outcome.err and "\x07" not in outcome.out + outcome.err, args


def test_errors_about_a_file(hostile: Callable[..., Path], call: Callable[..., Any], reference: None) -> None:
    files = [
        hostile("architecture", architecture=f"ll{TITLE}"),
        hostile("model", ggml__model=TITLE),
        hostile("pre", ggml__pre=TITLE),
        hostile("tensor", tensor=f"{TITLE}weight"),
    ]
    for file in files:
        outcome = call(cli.main, "-m", file, "-p", "x", "-n", 1)
        assert outcome.code == 1 and "\x1b" not in outcome.err and outcome.err.count("\n") == 1, outcome.err
    template = hostile("template", chat_template="{{ raise_exception('" + TITLE + "') }}")
    outcome = call(cli.main, "-m", template, "-cnv", "-st", "-p", "hi", "-n", 1, "--no-perf")
    assert outcome.code == 1 and SHOWN in outcome.err and "\x1b" not in outcome.err


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cli", ["-m", f"{TITLE}.gguf", "-p", "x"]),
        ("cli", ["-m", "MODEL", "-p", "x", "--rpc", f"{TITLE}:1"]),
        ("cli", ["-m", "MODEL", "-p", "x", "-dev", TITLE]),
        ("cli", ["-m", "MODEL", "-p", "x", "--grammar", f"root ::= {TITLE}"]),
        ("cli", ["-m", "MODEL", "-p", "x", "--prompt-cache", f"/nowhere/{TITLE}"]),
        ("cli", ["-m", "MODEL", "-f", f"/nowhere/{TITLE}"]),
        ("cli", [f"--{TITLE}"]),
        ("bench", ["-m", f"{TITLE}.gguf"]),
        ("perplexity", ["-m", "MODEL", "-f", TITLE]),
        ("quantize", [f"{TITLE}.gguf", "q8_0"]),
        ("inspection", [f"{TITLE}.gguf"]),
        ("rpc_server", ["-d", TITLE]),
    ],
)
def test_errors_about_what_the_user_gave(
    name: str, args: list[str], call: Callable[..., Any], model: Path, reference: None
) -> None:
    main = {**MAINS, "rpc_server": rpc_server}[name].main
    outcome = call(main, *(str(model) if arg == "MODEL" else arg for arg in args))
    assert outcome.code in (1, 2) and "\x1b" not in outcome.err and outcome.err.count("\n") == 1
    assert "\\x1b" in outcome.err, outcome.err


def test_logs(capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries log without a handler of ours: Python's last resort writes to stderr as it is then."""

    def command(argv: object) -> int:
        logging.getLogger("pyggml.somewhere").warning("the file says %s", TITLE)
        return 0

    handlers, root = logging.root.handlers[:], logging.root
    root.handlers[:] = []
    try:
        assert entry.run(command, []) == 0
    finally:
        root.handlers[:] = handlers
    assert capsys.readouterr().err == f"the file says {SHOWN}\n"


# ---- the model's text


def read_terminal(spawn: Callable[..., Any], *args: object, **options: Any) -> bytes:
    """What the command writes to a terminal that is its stdout."""
    ours, its = os.openpty()
    process = spawn("cli", *args, stdout=its, **options)
    os.close(its)
    out = b""
    with io.FileIO(ours) as stream:
        while True:
            try:
                data = stream.read(4096)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            out += data
    assert process.wait(120) == 0, process.stderr.read()
    return out


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no terminals to open")
@pytest.mark.parametrize("mode", ["completion", "conversation"])
def test_a_models_text_on_a_terminal_and_in_a_pipe(mode: str, spawn: Callable[..., Any], model: Path) -> None:
    """The model says ESC, BEL, BS, CR and CSI again and again."""
    for byte in (0x1B, 0x07, 0x08, 0x0D):
        args = ["-m", model, "-p", "hi", "-n", 3, "-l", f"{byte}+1000", "--no-perf", "--temp", 0]
        args += ["-cnv", "-st"] if mode == "conversation" else []
        seen = read_terminal(spawn, *args, env={"TERM": "dumb"})
        assert not set(seen) - {0x0A, 0x0D} & set(range(0x20)), seen
        assert seen.count(b"\r") == seen.count(b"\r\n"), "those of the terminal itself"
        piped = spawn("cli", *args, text=False, encoding=None)
        out, _ = piped.communicate(timeout=120)
        assert bytes([byte] * 3) in out
