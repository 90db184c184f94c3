"""Ctrl-C at any moment: what is set up is taken down again, each press is heard once, and a command's end is not torn."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import interrupts
from pyggml_cli.entry import run
from pyggml_cli.interrupts import EXIT_INTERRUPTED, State, interruptible, on_ctrl_c, whole


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert State.handler is interrupts._end and (State.depth, State.pending, State.over) == (0, False, False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "ctrl-c" not in [thread.name for thread in threading.enumerate()]
    assert signal.set_wakeup_fd(-1) == -1
    assert sys.getprofile() is None


def press() -> None:
    signal.raise_signal(signal.SIGINT)


class At:
    """A trace function that presses Ctrl-C at the n-th line or call of interrupts.py."""

    def __init__(self, n: int) -> None:
        self.n, self.seen, self.pressed = n, 0, False

    def __call__(self, frame: Any, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != interrupts.__file__ or frame.f_code.co_name in ("_pressed", "_end", "_watch"):
            return None
        if event in ("call", "line"):
            self.seen += 1
            if self.seen == self.n:
                self.pressed = True
                press()
        return self


def interrupted_at_every_line(enter: Callable[[], Any]) -> int:
    """Press at the first line, at the second.., as long as there is one; how many there were."""
    n = 0
    while True:
        n += 1
        at, heard = At(n), 0
        with interruptible(last=False):
            try:
                sys.settrace(at)
                try:
                    with enter():
                        pass
                finally:
                    sys.settrace(None)
            except KeyboardInterrupt:
                heard += 1
            assert signal.set_wakeup_fd(-1) == -1, n
        if not at.pressed:
            return n - 1
        assert heard == 1, n
        assert "ctrl-c" not in [thread.name for thread in threading.enumerate()], n
        assert State.handler is interrupts._end, n


def test_a_press_at_any_line_leaves_nothing_behind() -> None:
    assert interrupted_at_every_line(lambda: on_ctrl_c(lambda: None)) > 25


def test_a_mutant_that_may_be_torn_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_MARKED", set())
    monkeypatch.setattr(threading, "excepthook", lambda torn: None)
    left: list[on_ctrl_c] = []

    def make() -> on_ctrl_c:
        left.append(on_ctrl_c(lambda: None))
        return left[-1]

    with pytest.raises(AssertionError):  # at the first line that leaves something
        interrupted_at_every_line(make)
    signal.set_wakeup_fd(-1)
    for each in left:
        if each._writing is not None:
            each._writing.close()
    for thread in threading.enumerate():
        if thread.name == "ctrl-c":
            thread.join(30)
    for each in left:
        each.__exit__()
    State.handler, State.depth, State.pending = interrupts._end, 0, False


def test_a_press_within_a_whole_function_waits_for_its_end() -> None:
    done: list[str] = []

    @whole
    def inner() -> None:
        press()
        done.append("inner")

    @whole
    def outer() -> None:
        inner()
        done.append("outer")

    with interruptible(last=False):
        with pytest.raises(KeyboardInterrupt):
            outer()
        assert done == ["inner", "outer"]
        with pytest.raises(KeyboardInterrupt):
            press()


@pytest.mark.parametrize("presses", [1, 2])
def test_a_press_within_an_import_waits_for_its_end_and_a_second_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presses: int
) -> None:
    (tmp_path / "outer_pressed.py").write_text("import inner_pressed\n")
    text = presses * "signal.raise_signal(signal.SIGINT)\n"
    (tmp_path / "inner_pressed.py").write_text(f"import signal\n{text}")
    monkeypatch.syspath_prepend(tmp_path)
    with interruptible(last=False), pytest.raises(KeyboardInterrupt):
        import_module("outer_pressed")
    assert [sys.modules.pop(name, None) is not None for name in ("inner_pressed", "outer_pressed")] == 2 * [
        presses == 1
    ]


def test_the_callback_runs_at_once_and_the_handler_instead_of_an_interrupt() -> None:
    called, handled = threading.Event(), []
    with interruptible(last=False), on_ctrl_c(called.set, lambda: handled.append(1)):
        press()
        assert called.wait(30) and handled == [1]
        with pytest.raises(KeyboardInterrupt), on_ctrl_c(lambda: None, interrupts._end):
            press()
        press()
    assert handled == [1, 1]


def test_a_command_that_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Any) -> int:
        press()
        return 0

    assert run(command, []) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_who_was_started_with_it_ignored_is_left_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(last=True):
            press()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        State.over = False


ENDING = """
import signal, sys, time
from pyggml_cli.entry import run
def command(argv):
    print("ready", flush=True)
    for _ in range(1200):  # one sleep may begin after the signal has come and before anybody looks
        time.sleep(0.05)
sys.argv = ["x"]
code = run(command, None)
for _ in range(3):
    signal.raise_signal(signal.SIGINT)
import threading; threading.Timer(0.2, lambda: None).start()
sys.exit(code)
"""


def test_further_presses_do_not_change_how_a_process_ends() -> None:
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (EXIT_INTERRUPTED, "\ninterrupted\n")
