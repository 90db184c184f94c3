"""A conversation on a real terminal: tmux with a narrow window, keys, a paste, and a window that changes its size."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from text_model import write_text_model

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux here")

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}a:"
REPLY = "Grüße aus 世界, und noch ein Satz, der lang ist."
PATIENCE = 120.0  # seconds until a text must be there; machines may be slow


class Screen:
    """A tmux server of its own, with one program in its window."""

    def __init__(self, columns: int, rows: int, *args: object, **variables: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tmux-")  # names of sockets must be short
        self._tmux = ["tmux", "-u", "-f", os.devnull, "-S", f"{self._folder.name}/socket"]
        env = {**os.environ, "LC_ALL": "C.UTF-8", "PYGGML_HISTORY": ""}
        for name in ("TMUX", "NO_COLOR", "COLUMNS", "LINES"):  # the window has a size of its own
            env.pop(name, None)
        given = [f"{name}={value}" for name, value in variables.items()]
        said = 'trap : INT; "$@"; echo "exit code $?."; exec cat'  # tmux itself does not always learn of it
        program = ["sh", "-c", said, "sh", "env", *given, sys.executable, *map(str, args)]
        start = ["new-session", "-d", "-x", str(columns), "-y", str(rows), *program]
        subprocess.run([*self._tmux, *start], env=env, check=True, capture_output=True, timeout=PATIENCE)

    def tell(self, *words: str, input: str | None = None) -> str:  # noqa: A002 - subprocess's word
        done = subprocess.run(
            [*self._tmux, *words], input=input, capture_output=True, check=True, encoding="utf-8", timeout=PATIENCE
        )
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Names of keys, such as Enter, or texts."""
        self.tell("send-keys", *keys)

    def paste(self, text: str) -> None:
        self.tell("load-buffer", "-", ";", "paste-buffer", "-p", input=text)

    def resize(self, columns: int, rows: int) -> None:
        self.tell("resize-window", "-x", str(columns), "-y", str(rows))

    def lines(self) -> list[str]:
        """What the window shows, and what has left it above."""
        return self.tell("capture-pane", "-p", "-S", "-").rstrip().split("\n")

    def until(self, what: str, reached: Callable[[list[str]], object]) -> list[str]:
        """Wait until what the window shows is as it should be."""
        deadline = time.monotonic() + PATIENCE
        while not reached(lines := self.lines()):
            assert time.monotonic() < deadline, "\n".join([f"no {what} in:", *lines])
            time.sleep(0.03)
        return lines

    def answer(self, *keys: str) -> list[str]:
        """Press keys that end in Enter, and wait until the program asks for more."""
        before = prompts(self.lines())
        self.keys(*keys)
        return self.until("prompt", lambda lines: prompts(lines) > before and lines[-1].rstrip() == ">")

    def exit_code(self) -> int:
        shown = compact(self.until("end", lambda lines: compact(lines).endswith(".") and "exitcode" in compact(lines)))
        return int(shown.rpartition("exitcode")[2].removesuffix("."))

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=PATIENCE)
        self._folder.cleanup()


def prompts(lines: list[str]) -> int:
    return sum(line.startswith(">") for line in lines)


def compact(lines: list[str]) -> str:
    """The text without the white space at which lines may have been broken."""
    return "".join("".join(lines).split())


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    path = write_text_model(tmp_path / "chat.gguf", n_ctx=1 << 15, template=TEMPLATE)
    opened: list[Screen] = []

    def start(columns: int, rows: int, grammar: str, **variables: str) -> Screen:
        flags = ["-m", "pyggml_cli.cli", "-m", path, "--temp", 0, "--no-perf", "--grammar", grammar]
        opened.append(Screen(columns, rows, *flags, **variables))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def asked(path: Path) -> list[str]:
    """The user's messages in a saved conversation, each with the reply that was to be."""
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [m["content"] for m in messages if m["role"] == "assistant"] == [REPLY] * (len(messages) // 2)
    return [m["content"] for m in messages if m["role"] == "user"]


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_keys_paste_history_and_commands(screen: Callable[..., Screen], tmp_path: Path, locale: str) -> None:
    s = screen(40, 24, f'root ::= "{REPLY}"', LC_ALL=locale)
    s.until("first prompt", prompts)
    question = "Why is a line that is longer than forty columns not cut off?"
    shown = s.answer(question, "C-a", "You: ", "Enter")
    assert max(map(len, shown)) <= 40
    assert compact([f"> You: {question}{REPLY}"]) in compact(shown), "wrapped, and nothing lost"
    s.answer("first\\", "Enter", "second", "Enter")
    s.paste("eins\nzwei é\n\ndrei\n")
    s.until("paste", lambda lines: "drei" in lines[-1])
    s.answer("Enter")
    assert compact(s.answer("Up", "Up", "Up", "Up", "Enter")).count("You:Why") == 2
    s.answer("/regen", "Enter")
    s.answer(f"/save {tmp_path / 'a.json'}", "Enter")
    wanted = [f"You: {question}", "first\nsecond", "eins\nzwei é\n\ndrei", f"You: {question}"]
    assert asked(tmp_path / "a.json") == wanted
    s.answer("/clear", "Enter")
    s.answer("é世x", "BSpace", "BSpace", "ü", "Enter")  # takes characters away, not bytes
    s.keys("half of a line")
    s.until("half", lambda lines: lines[-1] == "> half of a line")
    s.resize(60, 20)
    s.answer(", and the rest of it in a window that is wider", "Enter")
    s.answer(f"/save {tmp_path / 'b.json'}", "Enter")
    end = "half of a line, and the rest of it in a window that is wider"
    assert asked(tmp_path / "b.json") == ["éü", end]
    assert "[loaded: 8 messages]" in s.answer(f"/load {tmp_path / 'a.json'}", "Enter")
    s.answer("further", "Enter")
    s.answer(f"/save {tmp_path / 'c.json'}", "Enter")
    assert asked(tmp_path / "c.json") == [*wanted, "further"]
    s.keys("/exit", "Enter")
    assert s.exit_code() == 0 and "Traceback" not in compact(s.lines())


def test_ctrl_c_and_a_new_size_while_the_model_speaks(screen: Callable[..., Screen]) -> None:
    s = screen(40, 12, f'root ::= ("{REPLY}" " ")+')
    s.until("first prompt", prompts)
    for turn, columns in enumerate((60, 30), 1):

        def speaks(lines: list[str], turn: int = turn) -> bool:
            asked = [i for i, line in enumerate(lines) if line.startswith("> go on")]
            return len(asked) == turn and compact(lines[asked[-1] + 1 :]).count("Satz") > 2

        s.keys("go on", "Enter")
        s.until("lines of this turn's reply", speaks)
        s.resize(columns, 12)
        s.until(
            "lines of the new width", lambda lines, n=columns: any(n - 3 < width(line) <= n for line in lines[-5:-1])
        )
        s.keys("C-c")
        shown = s.until("prompt", lambda lines: "[interrupted]" in lines[-2] and lines[-1] == ">")
        assert max(map(width, shown[-6:])) <= columns
    s.keys("/exit", "Enter")
    assert s.exit_code() == 0 and "Traceback" not in compact(s.lines())


BAR_WITHIN_TEXT = """
import os, sys, tty
from pyggml_cli.progress import Meter
tty.setcbreak(0)  # keys are not echoed
print(*range(int(sys.argv[1])), sep="\\n")
print("Hello, my name is", end="", flush=True)
for _ in range(2):
    meter = Meter("compiling kernels, once", 9, "kernels", patience=0.0, within_text=True)
    meter(1)
    os.read(0, 1)
    meter.close()
    print(" Ann", end="", flush=True)
    os.read(0, 1)
"""


@pytest.mark.parametrize("before", [3, 20])  # in the middle of the window, and at its bottom
def test_a_bar_leaves_the_line_that_was_begun(before: int) -> None:
    s = Screen(50, 9, "-c", BAR_WITHIN_TEXT, before)
    try:
        shown = [*map(str, range(before)), "Hello, my name is"]
        for _ in range(2):
            lines = s.until("bar", lambda lines: "compiling" in lines[-1] and "1/9" in lines[-1])
            assert lines[:-1] == shown
            s.keys("x")
            shown[-1] += " Ann"
            s.until("text that goes on", lambda lines, wanted=shown: lines == wanted)
            s.keys("x")
        assert s.exit_code() == 0
    finally:
        s.close()


def width(line: str) -> int:
    """Columns; the reply's two wide characters take two each."""
    return len(line) + sum(line.count(c) for c in "世界")
