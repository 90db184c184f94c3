"""Command lines in llama.cpp's manner: a table of flags in, values or one clear line out.

Owns parsing and the help text; must not know what any flag means to a model.
A flag takes the argument after it whatever that looks like (`-n -1`), `--a_b` is `--a-b`, the last one given counts.
"""

import difflib
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyggml.errors import PyggmlError


class UsageError(PyggmlError):
    """A command line that cannot be understood: one line, exit code 2."""


@dataclass(frozen=True)
class Flag:
    """A flag that does something. Without `parse` it is a switch, and `off` are the names that turn it off."""

    names: tuple[str, ...]
    dest: str
    help: str
    parse: Callable[[str], Any] | None = None
    meta: str = "N"
    default: Any = None
    off: tuple[str, ...] = ()
    many: bool = False  # each use adds to a list

    @property
    def shown(self) -> str:
        """Names and argument, as the help shows them."""
        names = ", ".join(self.names + self.off)
        return f"{names} {self.meta}" if self.parse else names


@dataclass(frozen=True)
class Ignored:
    """A flag of llama.cpp that makes no difference here: accepted, and one note says so."""

    names: tuple[str, ...]
    n_args: int = 0


@dataclass(frozen=True)
class Refused:
    """A flag of llama.cpp that would change the text and is not implemented; `harmless` values change nothing."""

    names: tuple[str, ...]
    n_args: int = 0
    harmless: tuple[str, ...] = ()


Row = Flag | Ignored | Refused


@dataclass
class Values:
    """What a command line said: `values.n_predict` and so on; `notes` are for stderr."""

    given: dict[str, Any]
    seen: set[str] = field(default_factory=set)  # the dests that were named, in contrast to defaults
    notes: list[str] = field(default_factory=list)
    free: list[str] = field(default_factory=list)  # arguments that belong to no flag

    def __getattr__(self, dest: str) -> Any:
        try:
            return self.__dict__["given"][dest]
        except KeyError:
            raise AttributeError(dest) from None


def parse(rows: Iterable[Row], argv: Sequence[str], free: bool = False) -> Values:
    """Read `argv` (without the program's name); `free`: it may have arguments without a flag. Raises UsageError."""
    table: dict[str, tuple[Row, bool]] = {}
    values = Values({})
    for row in rows:
        for name in row.names:
            assert name not in table, name
            table[name] = (row, True)
        if isinstance(row, Flag):
            for name in row.off:
                assert name not in table, name
                table[name] = (row, False)
            values.given[row.dest] = [] if row.many else row.default
    ignored: list[str] = []
    args = iter(argv)
    for arg in args:
        name = "--" + arg[2:].replace("_", "-") if arg.startswith("--") else arg
        if name not in table:
            if not free or arg.startswith("-"):
                raise UsageError(_unknown(arg, table))
            values.free.append(arg)
            continue
        row, on = table[name]
        if isinstance(row, Flag):
            value: Any = on
            if row.parse is not None:
                value = _convert(name, row.parse, _argument(name, args))
            if row.many:
                values.given[row.dest].append(value)
            else:
                values.given[row.dest] = value
            values.seen.add(row.dest)
            continue
        given = [_argument(name, args) for _ in range(row.n_args)]
        if isinstance(row, Ignored):
            ignored.append(name)
        elif not given or any(value not in row.harmless for value in given):
            raise UsageError(f"{' '.join([name, *given])}: not implemented here")
    if ignored := list(dict.fromkeys(ignored)):
        verb = "makes" if len(ignored) == 1 else "make"
        values.notes.append(f"note: {', '.join(ignored)} {verb} no difference here")
    return values


def _argument(name: str, args: Any) -> str:
    try:
        return str(next(args))
    except StopIteration:
        raise UsageError(f"{name} needs an argument") from None


def _convert(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as reason:
        raise UsageError(f"{name} {text!r}: {reason}") from None


def _unknown(arg: str, table: dict[str, Any]) -> str:
    if not arg.startswith("-") or arg == "-":
        return f"unexpected argument {arg!r}: every value follows a flag, as in -m FILE or -p TEXT"

    def likeness(name: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, arg, name).ratio(), -len(name)

    return f"unknown flag {arg}; the nearest known one is {max(table, key=likeness)}"


def whole(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """Parser of whole numbers from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if (low is not None and value < low) or (high is not None and value > high):
            above = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"must be {above}")
        return value

    return convert


def number(text: str) -> float:
    """Parser of real numbers."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def choice(*allowed: str) -> Callable[[str], str]:
    """Parser of one word out of a few."""

    def convert(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return convert


def proportions(text: str) -> list[float]:
    """Parser of `3,1` or `3/1`: no negative number, and not all of them zero."""
    values = [number(part) for part in text.replace("/", ",").split(",")]
    if min(values) < 0 or not 0 < sum(values) < float("inf"):
        raise ValueError("must be proportions such as 3,1")
    return values


def listed(text: str) -> list[str]:
    """Parser of comma-separated words."""
    words = [word for word in text.split(",") if word]
    if not words:
        raise ValueError("must name at least one")
    return words


def help_text(usage: str, about: str, groups: Mapping[str, Iterable[Row]], end: str = "") -> str:
    """The page for --help: flags that do something, group by group."""
    lines = [f"usage: {usage}", "", *textwrap.wrap(about, 100)]
    for title, rows in groups.items():
        flags = [row for row in rows if isinstance(row, Flag)]
        if flags:
            lines += ["", f"{title}:"]
        for row in flags:
            head = f"  {row.shown}"
            body = textwrap.wrap(row.help, 72) or [""]
            if len(head) > 30:
                lines.append(head)
                head = ""
            lines.append(f"{head:<32}{body[0]}")
            lines += [" " * 32 + line for line in body[1:]]
    if end:
        lines += ["", *textwrap.wrap(end, 100)]
    return "\n".join(lines) + "\n"


def show_notes(values: Values) -> None:
    """Write the notes to stderr."""
    for note in values.notes:
        print(note, file=sys.stderr)
