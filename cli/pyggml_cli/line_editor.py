"""The user's lines in a terminal: keys to edit with, Tab, a history that is kept, and Ctrl-C at any moment.

Owns the use of readline and the history's file. Where Python has no readline, lines are read without all that.
"""

import contextlib
import glob
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import ModuleType

from pyggml.cachedir import cache_dir
from pyggml.errors import PyggmlError
from pyggml_cli.interrupts import on_ctrl_c

VARIABLE = "PYGGML_HISTORY"  # a file; empty: no history is kept
KEPT_LINES = 1000


class LineEditor:
    """`read` gives one line; `close` keeps the lines of this session.

    commands       what Tab completes at the beginning of a line
    with_file      those of them that a file's name follows, which Tab completes too
    """

    def __init__(self, commands: Sequence[str], with_file: Sequence[str]) -> None:
        self._commands = sorted(commands)
        self._with_file = tuple(f"{command} " for command in with_file)
        self._readline = _readline()
        self._history = _history_file() if self._readline is not None else None
        self._n_before = 0
        self.left_over = ""  # of a line that Ctrl-C took back
        if self._readline is not None:
            self._set_up(self._readline)

    def _set_up(self, readline: ModuleType) -> None:
        if sys.flags.utf8_mode:  # in locale C: keys are UTF-8 to Python, and readline must not think otherwise
            os.environ["LC_ALL"] = "C.UTF-8"
        readline.parse_and_bind("set enable-bracketed-paste on")  # lines that are pasted are one message
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t\n")
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        if self._history is not None:
            with contextlib.suppress(OSError):
                readline.read_history_file(self._history)
        self._n_before = readline.get_current_history_length()

    def read(self, prompt: str) -> str:
        """The next line. Raises EOFError, KeyboardInterrupt.

        No Ctrl-C escapes it: one that comes after readline has shown the prompt and before it waits for keys would be
        noticed at the next key only, so the signal is repeated until it has ended the wait.
        """
        main, waiting = threading.main_thread().ident, threading.Event()

        def again() -> None:
            time.sleep(0.1)
            if waiting.is_set() and main is not None and hasattr(signal, "pthread_kill"):
                signal.pthread_kill(main, signal.SIGINT)

        with on_ctrl_c(again):
            waiting.set()
            self.left_over = ""
            try:
                return input(prompt)
            except KeyboardInterrupt:
                self.left_over = self._readline.get_line_buffer() if self._readline is not None else ""
                raise
            finally:
                waiting.clear()

    def close(self) -> None:
        """Write the history, as far as that is possible."""
        readline = self._readline
        if readline is None or self._history is None:
            return
        new = readline.get_current_history_length() - self._n_before
        with contextlib.suppress(OSError):
            os.close(os.open(self._history, os.O_WRONLY | os.O_CREAT, 0o600))  # what one has typed is one's own
            readline.set_history_length(KEPT_LINES)
            if hasattr(readline, "append_history_file"):  # others may have written meanwhile
                readline.append_history_file(max(new, 0), self._history)
            else:
                readline.write_history_file(self._history)
        self._n_before += max(new, 0)

    def _complete(self, text: str, state: int) -> str | None:
        """What readline asks for: the completion number `state` of the word `text`."""
        assert self._readline is not None
        found = self.completions(self._readline.get_line_buffer(), text)
        return found[state] if state < len(found) else None

    def completions(self, line: str, word: str) -> list[str]:
        """What the last word of `line` may become: commands at its beginning, files behind some of them."""
        if line.startswith(self._with_file):
            start = os.path.expanduser(word)
            found = sorted(glob.glob(f"{glob.escape(start)}*"))
            return [path + "/" if os.path.isdir(path) else path for path in found]
        if line.startswith("/") and " " not in line:
            return [command for command in self._commands if command.startswith(word)]
        return []


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    return readline


def _history_file() -> str | None:
    named = os.environ.get(VARIABLE)
    if named is not None:
        return named or None
    try:
        return str(cache_dir("cli") / "history")
    except (PyggmlError, OSError):  # no place to keep it: not worth a word
        return None
