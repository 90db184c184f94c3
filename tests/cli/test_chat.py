"""pyggml-cli in conversation: in this process, and in a terminal of its own."""

import contextlib
import errno
import io
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import cli
from pyggml_cli.chat import WAYS_OUT
from pyggml_cli.line_editor import LineEditor
from text_model import EOT, write_text_model

from pyggml.runtime.context import Context

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if messages|length > 20 %}{{ raise_exception('too many') }}{% endif %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
X = ["--temp", "0", "-l", f"{ord('x')}+1000", "-n", "3", "--no-perf"]  # the model says xxx


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("chat") / "chat.gguf", n_ctx=256, template=TEMPLATE)


@pytest.fixture
def converse(call: Callable[..., Any], chatty: Path, reference: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """pyggml-cli with these lines on stdin."""

    def run(lines: str, *args: object, path: Path = chatty) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return call(cli.main, "-m", path, *args)

    return run


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """What the context was given, call by call; single tokens are of replies."""
    calls: list[list[int]] = []
    decode = Context.decode

    def counting(self: Context, tokens: Any, *args: Any, **options: Any) -> Any:
        calls.append([int(token) for token in tokens])
        return decode(self, tokens, *args, **options)

    monkeypatch.setattr(Context, "decode", counting)
    yield calls


def spelt(tokens: list[int]) -> str:
    return "".join("|" if token == EOT else chr(token) for token in tokens)


def prompts(decoded: list[list[int]]) -> list[str]:
    return [spelt(tokens) for tokens in decoded if len(tokens) > 1]


def test_a_conversation(converse: Any, decoded: list[list[int]]) -> None:
    outcome = converse("q\nr\n", *X)
    assert (outcome.code, outcome.out, outcome.err) == (0, "xxx\nxxx\n", "")
    assert prompts(decoded) == ["u:q|a:", "x|u:r|a:"]  # only what is new, and the last token of the reply


def test_who_asks_for_one(converse: Any) -> None:
    assert converse("q\n", "-cnv", *X).out == "xxx\n"
    assert converse("r\n", "-cnv", "-p", "q", *X).out == "xxx\nxxx\n"
    assert converse("r\n", "-st", "-p", "q", *X).out == "xxx\n"
    assert converse("q\nr\n", "-st", *X).out == "xxx\n"
    assert converse("r\n", "-sys", "s", "-p", "q", *X).out == "xxx\nxxx\n"
    assert converse("r\n", "-p", "q", *X).out == "qxxx"
    assert converse("r\n", "-st", "-no-cnv", "-p", "q", *X).out == "qxxx"
    assert converse("", *X).out == ""


def test_the_system_s_message(converse: Any, decoded: list[list[int]], tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("be\\n kind\n")
    converse("q\n", "-sys", r"be\n kind", *X)
    converse("q\n", "-sysf", tmp_path / "s.txt", *X)
    assert prompts(decoded) == ["s:be\n kind|u:q|a:", "s:be\\n kind|u:q|a:"]
    outcome = converse("q\n", "-sys", "a", "-sysf", tmp_path / "s.txt", *X)
    assert (outcome.code, outcome.err) == (2, "error: give -sys or a file, not both\n")
    assert converse("q\n", "-sysf", tmp_path / "none", *X).code == 1


def test_templates(converse: Any, decoded: list[list[int]], tmp_path: Path, model: Path) -> None:
    (tmp_path / "t.jinja").write_text("file:{{ messages[0].content }}")
    converse("q\n", "--chat-template", "vicuna", *X)
    converse("q\n", "--chat-template", "given:{{ messages[0].content }}", *X)
    converse("q\n", "--chat-template-file", tmp_path / "t.jinja", *X)
    outcome = converse("q\n", *X, path=model)
    assert outcome.err == "note: the file has no chat template, chatml is used\n"
    wanted = ["USER: q\nASSISTANT:", "given:q", "file:q", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"]
    assert prompts(decoded) == wanted
    outcome = converse("q\n", "--chat-template", "nonsense", *X)
    assert outcome.code == 1 and outcome.err.startswith(
        "error: chat template 'nonsense' is neither Jinja nor a known name"
    )
    outcome = converse("q\n", "--chat-template", "{{ ''.__class__ }}", *X)
    assert outcome.code == 1 and "SecurityError" in outcome.err and outcome.err.count("\n") == 1


def test_lines_that_go_on(converse: Any, decoded: list[list[int]]) -> None:
    converse("q\\\n\\\nr\ns\n\n\n", *X)
    assert prompts(decoded) == ["u:q\n\nr|a:", "x|u:s|a:"]
    decoded.clear()
    converse("q\n\nr\\\ns\n", "-mli", *X)
    assert prompts(decoded) == ["u:q\n\nr|a:", "x|u:s|a:"]


def test_clear(converse: Any, decoded: list[list[int]]) -> None:
    outcome = converse("q\n/clear\nr\n", "-sys", "S", *X)
    assert outcome.err == "[forgotten]\n"
    assert prompts(decoded) == ["s:S|u:q|a:", "r|a:"]  # the system's message is still in the cache


def test_regen(converse: Any, decoded: list[list[int]]) -> None:
    assert converse("q\nr\n/regen\ns\n", *X).out == "xxx\n" * 4
    assert [spelt(tokens) for tokens in decoded] == [
        "u:q|a:",
        "x",
        "x",
        "x|u:r|a:",
        "x",
        "x",
        ":",
        "x",
        "x",
        "x|u:s|a:",
        "x",
        "x",
    ]
    outcome = converse("/regen\n", *X)
    assert outcome.code == 2 and "there is no reply yet" in outcome.err


def test_save_and_load(converse: Any, decoded: list[list[int]], tmp_path: Path) -> None:
    file = tmp_path / "a b.json"
    assert converse(f"q\n/save {file}\n", *X).err == "[saved: 2 messages]\n"
    decoded.clear()
    assert converse(f"/load {file}\nr\n/regen\n/exit\nnever\n", *X).err == (
        "[loaded: 2 messages]\n  user: q\n  assistant: xxx\n"
    )
    assert prompts(decoded) == ["u:q|a:xxx|u:r|a:"]
    for line in ("/save", "/load", "/load /nonexistent/x", "/save /nonexistent/x", "/nonsense"):
        outcome = converse(line + "\n", *X)
        assert outcome.code in (1, 2) and outcome.err.count("\n") == 1, line


def test_help_and_what_is_no_command(converse: Any, decoded: list[list[int]]) -> None:
    err = converse("/help\n", *X).err
    for name in ("/clear", "/regen", "/save", "/load", "/exit"):
        assert name in err
    converse("/usr/bin?\n/ 2\n", *X)
    assert prompts(decoded) == ["u:/usr/bin?|a:", "x|u:/ 2|a:"]
    decoded.clear()
    converse("", "-cnv", "-p", "/clear", *X)
    assert prompts(decoded) == ["u:/clear|a:"]


def test_reverse_prompts_end_a_reply(converse: Any, decoded: list[list[int]]) -> None:
    assert converse("q\nr\n", *X, "-n", 9, "-r", "xx").out == "xx\nxx\n"
    assert converse("q\n", *X, "-r", "").code == 2
    assert prompts(decoded)[1] == "x|u:r|a:"


def test_replies_end_by_themselves(converse: Any, decoded: list[list[int]]) -> None:
    args = ["--temp", "0", "-l", f"{EOT}+1000", "--no-perf"]
    assert converse("q\nr\n", *args).out == "\n\n"
    assert prompts(decoded) == ["u:q|a:", "|u:r|a:"]
    assert converse("q\n", *args, "--special").out == "<|end|>\n"


def test_a_full_context(converse: Any, decoded: list[list[int]]) -> None:
    outcome = converse("q\n", *X, "-n", -1, "-c", 16)
    assert (
        outcome.out == "x" * 10 + "\n"
        and outcome.err == "[context full: 16 tokens; with --context-shift it goes on without the oldest]\n"
    )
    outcome = converse("q\n" + "r" * 30 + "\ns\n", *X, "-c", 32)
    assert outcome.code == 2 and outcome.out == "xxx\n"
    assert outcome.err.endswith(f"a context of 32 takes at most 28: {WAYS_OUT}\n")


def test_timings_once_at_the_end(converse: Any) -> None:
    outcome = converse("q\nr\n", *[x for x in X if x != "--no-perf"])
    assert len(re.findall("prompt eval time = .*/ +14 tokens", outcome.err)) == 1
    assert "total time" in outcome.err.splitlines()[-1]


def test_penalties_begin_anew_with_each_turn(converse: Any) -> None:
    two = ["--temp", 0, "-n", 3, "--no-perf", "-l", f"{ord('x')}+100", "-l", f"{ord('y')}+90", "--repeat-penalty", 2]
    assert converse("q\nr\n", *two).out == "xyx\nxyx\n"


# ---- in a terminal


class Terminal:
    """pyggml-cli at the other end of a pseudo-terminal."""

    def __init__(self, *args: object, history: str | Path = "") -> None:
        self.leader, follower = pty.openpty()
        command = [sys.executable, "-m", "pyggml_cli.cli", *map(str, args)]
        env = {**os.environ, "TERM": "dumb", "PYGGML_HISTORY": str(history)}

        def controlling() -> None:
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=controlling,  # Ctrl-C becomes a signal
            env=env,
        )
        os.close(follower)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def until(self, text: str, timeout: float = 240) -> str:
        """Wait for `text`; all that came up to it, which is then forgotten."""
        deadline = time.monotonic() + timeout
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.leader], [], [], left)[0], f"no {text!r} in {self.shown!r}"
            try:
                data = os.read(self.leader, 4096)
            except OSError as reason:
                assert reason.errno == errno.EIO
                data = b""
            assert data, f"ended without {text!r}: {self.shown!r}"
            self.shown += data.decode("utf-8", "replace")
        at = self.shown.index(text) + len(text)
        before, self.shown = self.shown[:at], self.shown[at:]
        return before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.leader)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: object, history: str | Path = "") -> Terminal:
        path = write_text_model(tmp_path / "long.gguf", n_ctx=1 << 15, template=TEMPLATE)
        opened.append(Terminal("-m", path, "--temp", 0, "-l", f"{ord('x')}+1000", "--no-perf", *args, history=history))
        return opened[-1]

    yield start
    for t in opened:
        t.close()


def test_ctrl_c_stops_the_reply_and_not_the_program(terminal: Callable[..., Terminal]) -> None:
    t = terminal()
    assert "/help lists commands" in t.until("> ")
    for _ in range(2):  # the first reply is not the last
        t.type("hello\n")
        t.until("xxxxx")
        t.type("\x03")
        assert "Traceback" not in t.until("[interrupted]")
        t.until("> ")
        assert t.process.poll() is None
    t.type("/exit\n")
    assert t.process.wait(60) == 0


def test_in_a_terminal_errors_do_not_end_it(terminal: Callable[..., Terminal]) -> None:
    t = terminal("-n", 3)
    t.until("> ")
    t.type("/load /nonexistent\n")
    t.until("error: /nonexistent: No such file or directory")
    t.until("> ")
    t.type("/nonsense\n")
    t.until("error: unknown command /nonsense")
    t.until("> ")
    t.type("a\\\n")
    t.type("b\n")
    t.until("xxx")
    t.until("> ")
    t.type("\x04")
    assert t.process.wait(60) == 0


HINT = "Ctrl-C again, or Ctrl-D, ends"


def test_ctrl_c_at_the_prompt_ends_it_at_the_second_time(terminal: Callable[..., Terminal]) -> None:
    t = terminal("-n", 3)
    t.until("> ")
    t.type("\x03")
    t.until(HINT)
    t.until("> ")
    t.type("\x03")
    assert "Traceback" not in t.until("interrupted")
    assert t.process.wait(60) == 130


def test_ctrl_c_takes_a_half_typed_line_back_and_goes_on(terminal: Callable[..., Terminal]) -> None:
    t = terminal("-n", 3)
    t.until("> ")
    for _ in range(3):
        t.type("half a li")
        t.until("half a li")
        t.type("\x03")
        t.until(HINT)
        t.until("> ")
    t.type("q\n")
    t.until("xxx")
    t.until("> ")
    t.type("\x03")  # just after a reply: as if nothing had been pressed before
    t.until(HINT)
    t.until("> ")
    t.type("/exit\n")
    assert t.process.wait(60) == 0


@pytest.mark.parametrize("presses", [2, 3])
def test_several_ctrl_c_within_a_reply_end_it(presses: int, terminal: Callable[..., Terminal]) -> None:
    t = terminal()
    t.until("> ")
    t.type("q\n")
    t.until("xxxxx")
    t.process.send_signal(signal.SIGSTOP)  # so that they come together
    for _ in range(presses):
        t.type("\x03")
    t.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 60
    while t.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            t.until("interrupted", timeout=1)
        t.type("\x03")
        time.sleep(0.2)
    assert t.process.poll() == 130


def test_what_was_typed_is_there_in_the_next_session(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    history = tmp_path / "history"
    for typed in ("first line\n", "second line\n"):
        t = terminal("-n", 1, history=history)
        t.until("> ")
        t.type(typed)
        t.until("x\r\n")
        t.until("> ")
        t.type("\x04")
        assert t.process.wait(60) == 0
    assert history.read_text().split("\n")[-3:] == ["first line", "second line", ""]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    t = terminal("-n", 1, history=history)
    t.until("> ")
    t.type("\x10\x10\n")  # Ctrl-P, twice: two lines back
    assert "first line" in t.until("x\r\n")


def test_what_tab_completes(tmp_path: Path) -> None:
    editor = LineEditor(["/clear", "/load", "/save", "/exit"], ["/load", "/save"])
    (tmp_path / "talk one.json").touch()
    (tmp_path / "talks").mkdir()
    assert editor.completions("/", "/") == ["/clear", "/exit", "/load", "/save"]
    assert editor.completions("/l", "/l") == ["/load"]
    assert editor.completions("/x", "/x") == editor.completions("hello /l", "/l") == editor.completions("a", "a") == []
    files = [str(tmp_path / "talk one.json"), f"{tmp_path / 'talks'}/"]
    assert editor.completions(f"/load {tmp_path}/ta", f"{tmp_path}/ta") == files
    assert editor.completions(f"/save {tmp_path}/x", f"{tmp_path}/x") == []


def test_tab_in_a_terminal(terminal: Callable[..., Terminal]) -> None:
    t = terminal("-n", 1)
    t.until("> ")
    t.type("/ex\t\n")
    assert t.process.wait(60) == 0


def test_a_ctrl_c_that_comes_before_the_wait_for_keys_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(prompt: str) -> str:
        before = signal.signal(signal.SIGINT, lambda *_: None)
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
        time.sleep(60)
        return prompt

    monkeypatch.setattr("builtins.input", deaf)
    with pytest.raises(KeyboardInterrupt):
        LineEditor([], []).read("> ")


def test_ctrl_c_without_a_terminal(spawn: Callable[..., Any], tmp_path: Path) -> None:
    """The signal alone stops the reply as well, and the next line is answered."""
    path = write_text_model(tmp_path / "long.gguf", n_ctx=1 << 15, template=TEMPLATE)
    process = spawn(
        "cli", "-m", path, "--temp", 0, "-l", f"{ord('x')}+1000", "--no-perf", "-cnv", stdin=subprocess.PIPE
    )
    process.stdin.write("q\n")
    process.stdin.flush()
    assert process.stdout.read(20) == 20 * "x"
    process.send_signal(signal.SIGINT)
    process.stdin.write("/exit\n")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and set(out) <= {"x", "\n"} and "[interrupted]\n" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "[True]"),
        (["--chat-template-kwargs", '{"mood": "glad", "n": 2}'], "[glad2True]"),
        (["--reasoning", "off"], "[False]"),
        (["-rea", "on", "--reasoning-effort", "low"], "[lowTrue]"),
    ],
)
def test_what_templates_are_told(converse: Any, decoded: list[list[int]], flags: list[str], told: str) -> None:
    template = "[{{ mood }}{{ n }}{{ reasoning_effort }}{{ enable_thinking }}]{{ messages[-1].content }}"
    assert converse("q\n", "-cnv", "--chat-template", template, *flags, *X).code == 0
    assert prompts(decoded) == [f"{told}q"]
