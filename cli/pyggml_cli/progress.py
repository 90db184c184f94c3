"""Progress on stderr: a bar when it is a terminal, one plain line when it is not.

Owns how waiting looks. rich is imported when the first bar is drawn.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from pyggml_cli.terminal import raw

_LEAVE = "\x1bD\x1bD\x1b[2A\x1b7\r\n"  # make room for two lines below, remember the place, and begin a line
_RETURN = "\x1b8"
WIDE = 80  # columns, from which on there is room for the time that is left
ROOM = 24  # columns for what stands behind a bar


class Update(Protocol):
    """Tell how far it is, in the units of `total`; `total` and `label` may still change."""

    def __call__(self, done: float, total: float | None = None, label: str | None = None) -> None: ...


class Meter:
    """One thing waited for. Nothing is shown until `patience` seconds have passed, nor when it is already done.

    `within_text`: a line that was begun stays, and goes on where it was once the bar is gone; nothing else may be
    printed before that.
    """

    def __init__(
        self,
        label: str,
        total: float | None = None,
        unit: str = "bytes",
        patience: float = 0.3,
        within_text: bool = False,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._within_text = within_text
        self._due = time.monotonic() + patience
        self.shown = False
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: float, total: float | None = None, label: str | None = None) -> None:
        self.label = label or self.label
        self.total = total if total is not None else self.total
        if not self.shown:
            if time.monotonic() < self._due or (self.total is not None and done >= self.total):
                return
            self.shown = True
            self._open()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, description=self.label)

    def _open(self) -> None:
        if not sys.stderr.isatty():
            print(f"{self.label} ...", file=sys.stderr, flush=True)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(file=raw(sys.stderr))
        amount = DownloadColumn(binary_units=True) if self.unit == "bytes" else MofNCompleteColumn()
        bar = BarColumn(bar_width=min(40, max(4, console.width - len(self.label) - ROOM)))
        left = (TimeRemainingColumn(compact=True),) if console.width >= WIDE else ()
        columns = (TextColumn("{task.description}"), bar, amount, *left)
        self._within_text = self._within_text and not console.is_dumb_terminal
        if self._within_text:
            print(_LEAVE, end="", file=raw(sys.stderr), flush=True)
        self._bar = Progress(*columns, console=console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(self.label, total=self.total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            if self._within_text:
                print(_RETURN, end="", file=raw(sys.stderr), flush=True)


@contextlib.contextmanager
def meter(label: str, total: float | None = None, unit: str = "bytes") -> Iterator[Update]:
    """`with meter("sending weights", n) as update: update(i)`."""
    bar = Meter(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()


WORTH_SAYING = 10.0  # seconds that are left


def estimate(done: int, total: int, seconds: float, what: str) -> str | None:
    """A line on how long it will take, from what `done` of `total` took; None if that is soon."""
    left = seconds / done * (total - done)
    if left < WORTH_SAYING:
        return None
    hours, rest = divmod(round(left), 3600)
    text = f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
    return f"{seconds / done:.2f} seconds a {what}, about {text} left"
