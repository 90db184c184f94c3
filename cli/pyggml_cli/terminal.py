"""What foreign text may do to a terminal: nothing. Names of files, texts of models and peers' words can hold control
characters, which a terminal obeys (it takes a title, moves the cursor, pastes).

Owns which characters those are. On stderr they are shown as escapes, always: `visible` stands before all that is
written there, but for bars and colours of ours, which go to `raw`. The model's text on stdout loses them where stdout
is a terminal; into a file or a pipe it goes as it is.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"  # all of C0 and C1 but tab and line feed
_DIRECTIONS = "\u202a-\u202e\u2066-\u2069"  # they make a name look like another
_SHOWN = re.compile(f"[{_CONTROLS}{_DIRECTIONS}]")
_DROPPED = re.compile(f"[{_CONTROLS}]")


def visible(text: str) -> str:
    """The text with control characters as escapes, but for line breaks and tabs."""
    return _SHOWN.sub(lambda match: repr(match[0])[1:-1], text)


def plain(text: str) -> str:
    """The text without control characters, but for line breaks and tabs."""
    return _DROPPED.sub("", text)


def text_for(out: TextIO) -> Callable[[str], str]:
    """What to make of a model's text before it is written there."""
    return plain if out.isatty() else str


class _Visible:
    """A stream that shows what it is given as `visible` does. What it cannot take, as the disk behind it is full or nobody
    reads, is lost, and that ends no command: the text is elsewhere."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.raw.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.raw.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: TextIO) -> TextIO:
    """The stream behind `shown_controls`, for what is our own."""
    return stream.raw if isinstance(stream, _Visible) else stream


@contextlib.contextmanager
def shown_controls() -> Iterator[None]:
    """While this lasts, control characters that anything writes to stderr, logs too, are shown."""
    before = sys.stderr
    sys.stderr = cast(TextIO, before if isinstance(before, _Visible) else _Visible(before))
    try:
        yield
    finally:
        sys.stderr = before
        give_up_if_full(before)


def give_up_if_full(stream: TextIO) -> None:
    """What a stream holds and cannot get rid of goes nowhere: Python's flush at exit would make it the exit code."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
