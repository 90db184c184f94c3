"""Command lines in llama.cpp's manner: a table of flags in, values or one clear line out.

Owns parsing and the help text. A flag takes the argument after it whatever that looks like (`-n -1`), `--a_b` is
`--a-b`, the last one given counts.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyggml.errors import PyggmlError
from pyggml.number_text import real_number, whole_number


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
    count: int = 1  # arguments, each parsed; the value of more than one is a tuple

    @property
    def shown(self) -> str:
        """Names and argument, as the help shows them."""
        names = ", ".join(self.names + self.off)
        return f"{names} {self.meta}" if self.parse else names


@dataclass(frozen=True)
class Ignored:
    """A flag of llama.cpp that makes no difference here: accepted, and one note says so. What `parse` refuses is none of
    its values, and a mistake here as it is there."""

    names: tuple[str, ...]
    n_args: int = 0
    off: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None


@dataclass(frozen=True)
class Refused:
    """A flag of llama.cpp that is not implemented; `harmless` values, and the names in `off`, ask for nothing."""

    names: tuple[str, ...]
    n_args: int = 0
    harmless: tuple[str, ...] = ()
    why: str = ""
    off: tuple[str, ...] = ()


Row = Flag | Ignored | Refused
WEEK = 7 * 24 * 3600
NEAR = 0.75  # likeness of names from which one may stand for the other
WIDEST, NARROWEST = 100, 40  # columns of a help page
INDENT = 32  # of what a flag does, where there is room
TRUE = ("on", "enabled", "true", "1")  # common_arg_utils::is_truthy and is_falsey in llama.cpp's common/arg.cpp
FALSE = ("off", "disabled", "false", "0")


@dataclass
class Values:
    """What a command line said: `values.n_predict` and so on; `notes` are for stderr."""

    given: dict[str, Any]
    seen: set[str] = field(default_factory=set)  # the dests that were named, in contrast to defaults
    notes: list[str] = field(default_factory=list)
    free: list[str] = field(default_factory=list)  # arguments that belong to no flag
    from_environment: set[str] = field(default_factory=set)  # the dests that a variable gave

    def __getattr__(self, dest: str) -> Any:
        try:
            return self.__dict__["given"][dest]
        except KeyError:
            raise AttributeError(dest) from None


def parse(
    rows: Iterable[Row],
    argv: Sequence[str],
    environ: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    free: bool = False,
) -> Values:
    """Read `argv` (without the program's name) and then, for flags it does not name, `environ`. Raises UsageError.

    variables  environment variable -> the flag whose value it may hold
    free       there may be arguments without a flag
    """
    table: dict[str, tuple[Row, bool]] = {}
    values = Values({})
    for row in rows:
        for name in (*row.names, *row.off):
            assert name not in table, name
            table[name] = (row, name in row.names)
        if isinstance(row, Flag):
            values.given[row.dest] = [] if row.many else row.default
    reader = _Reader(values, [])
    args = iter(argv)
    named: dict[int, str] = {}  # rows that the command line names
    for arg in args:
        name = "--" + arg[2:].replace("_", "-") if arg.startswith("--") else arg
        if name not in table:
            if not free or arg.startswith("-"):
                raise UsageError(_unknown(arg, table))
            values.free.append(arg)
            continue
        row, on = table[name]
        named[id(row)] = name
        reader.take(name, row, on, [_argument(name, args) for _ in range(_n_args(row))])
    if environ:
        for variable, flag in (variables or {}).items():
            _from_environment(reader, environ, variable, flag, table, named)
    if ignored := list(dict.fromkeys(reader.ignored)):
        verb = "makes" if len(ignored) == 1 else "make"
        values.notes.append(f"note: {', '.join(ignored)} {verb} no difference here")
    return values


@dataclass
class _Reader:
    """Takes what was given, one flag at a time."""

    values: Values
    ignored: list[str]

    def take(self, name: str, row: Row, on: bool, given: list[str]) -> None:
        """`name` is what the user wrote, for messages; a switch is on or off, others have their arguments given."""
        if isinstance(row, Flag):
            value: Any = on
            if row.parse is not None:
                read = tuple(_convert(name, row.parse, text) for text in given)
                value = read[0] if row.count == 1 else read
            if row.many:
                self.values.given[row.dest].append(value)
            else:
                self.values.given[row.dest] = value
            self.values.seen.add(row.dest)
        elif isinstance(row, Ignored):
            if row.parse is not None:
                for text in given:
                    _convert(name, row.parse, text)
            self.ignored.append(name)
        elif on and (not given or any(value not in row.harmless for value in given)):
            why = f": {row.why}" if row.why else ""
            raise UsageError(f"{' '.join([name, *given])}: not implemented here{why}")


def _from_environment(
    reader: _Reader,
    environ: Mapping[str, str],
    variable: str,
    flag: str,
    table: Mapping[str, Any],
    named: dict[int, str],
) -> None:
    """What a variable says (common_arg::get_value_from_env in common/arg.cpp).

    A flag with a negative has a second variable, LLAMA_ARG_NO_..., which turns it off whatever it holds, and counts
    for more. A flag on the command line counts for more than both.
    """
    if flag not in table:
        return
    row, on = table[flag]
    negative = variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")
    found = negative if row.off and _n_args(row) == 0 and negative in environ else variable
    if found not in environ:
        return
    if id(row) in named:
        reader.values.notes.append(f"note: {named[id(row)]} on the command line counts for more than {found}")
        return
    text = environ[found]
    if isinstance(row, Flag):
        reader.values.from_environment.add(row.dest)
    if _n_args(row):
        reader.take(found, row, on, [text])
    elif found == negative and negative != variable:
        reader.take(found, row, not on, [])
    elif text in TRUE:
        reader.take(found, row, on, [])
    elif text not in FALSE:
        raise UsageError(f"{found} {text!r}: must be one of {', '.join(TRUE + FALSE)}")
    elif row.off:
        reader.take(found, row, not on, [])


def _n_args(row: Row) -> int:
    if isinstance(row, Flag):
        return 0 if row.parse is None else row.count
    return row.n_args


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
        return f"unexpected argument {arg!r}: every value follows a flag; --help lists them"
    carried_out = [name for name, (row, _) in table.items() if isinstance(row, Flag)]
    nearest = max(carried_out, key=lambda name: (_likeness(arg, name), -len(name)))
    near = _likeness(arg, nearest) >= NEAR
    return f"unknown flag {arg}; " + (
        f"the nearest known one is {nearest}" if near else "--help lists those that there are"
    )


def _likeness(arg: str, name: str) -> float:
    """From 0 to 1; what only goes on longer, such as --temperature for --temp, is near."""
    import difflib

    alike = difflib.SequenceMatcher(None, arg, name).ratio()
    shorter, longer = sorted((arg, name), key=len)
    return max(alike, 0.9) if len(shorter) > 4 and longer.startswith(shorter) else alike


def whole(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """Parser of whole numbers from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            value = whole_number(text)
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
        return real_number(text)
    except ValueError:
        raise ValueError("must be a number") from None


def seconds(low: float = 0.0) -> Callable[[str], float]:
    """Parser of a time in seconds, at least `low` and at most a week."""

    def convert(text: str) -> float:
        value = number(text)
        if not low <= value <= WEEK:  # NaN is not either
            raise ValueError(f"must be from {low:g} to {WEEK} seconds")
        return value

    return convert


def choice(*allowed: str) -> Callable[[str], str]:
    """Parser of one word out of a few."""

    def convert(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(word or repr(word) for word in allowed)}")
        return text

    return convert


def without_effect(rows: Iterable[Row]) -> list[Row]:
    """Flags of another command that make no difference in this one; their values are read as they are there."""
    flags = (row for row in rows if isinstance(row, Flag))
    return [Ignored(row.names, 0 if row.parse is None else row.count, row.off, row.parse) for row in flags]


def proportions(text: str) -> list[float]:
    """Parser of `3,1` or `3/1`: no negative number, and not all of them zero."""
    values = [number(part) for part in text.replace("/", ",").split(",")]
    if min(values) < 0 or not 0 < sum(values) < float("inf"):
        raise ValueError("must be proportions such as 3,1")
    return values


def comma_separated(text: str) -> list[str]:
    """Parser of comma-separated words."""
    words = [word for word in text.split(",") if word]
    if not words:
        raise ValueError("must name at least one")
    return words


def filename(text: str) -> str:
    """Parser of the name of a file or folder; pathlib would take none for the current folder."""
    if not text:
        raise ValueError("must not be empty")
    return text


def csv_row(text: str) -> list[str]:
    """Parser of comma-separated fields, as parse_csv_row in common/arg.cpp reads them: commas do not count in a field that
    begins with a double quote, until the next one; two of them stand for one there, and elsewhere one is itself."""
    fields, quoted, i = [""], False, 0
    while i < len(text):
        c = text[i]
        if c == '"' and quoted and text[i + 1 : i + 2] == '"':
            fields[-1] += c
            i += 1
        elif c == '"' and (quoted or not fields[-1]):
            quoted = not quoted
        elif c == "," and not quoted:
            fields.append("")
        else:
            fields[-1] += c
        i += 1
    return fields


def help_text(
    usage: str,
    about: str,
    groups: Mapping[str, Iterable[Row]],
    end: str = "",
    examples: Iterable[tuple[str, str]] = (),
) -> str:
    """The page for --help, as wide as the terminal: flags that do something, group by group; examples are command and what
    it does."""
    import textwrap

    width = min(WIDEST, max(NARROWEST, shutil.get_terminal_size((WIDEST, 24)).columns))
    indent = INDENT if width >= 2 * INDENT else 8
    lines = [*textwrap.wrap(f"usage: {usage}", width, subsequent_indent="    "), "", *textwrap.wrap(about, width)]
    for title, rows in groups.items():
        flags = [row for row in rows if isinstance(row, Flag)]
        if flags:
            lines += ["", f"{title}:"]
        for row in flags:
            head = f"  {row.shown}"
            body = textwrap.wrap(row.help, width - indent) or [""]
            if len(head) > indent - 2:
                lines += textwrap.wrap(row.shown, width, initial_indent="  ", subsequent_indent="      ")
                head = ""
            lines.append(f"{head:<{indent}}{body[0]}")
            lines += [" " * indent + line for line in body[1:]]
    if shown := list(examples):
        lines += ["", "examples:"]
        for command, what in shown:
            lines += [f"  {command}", *textwrap.wrap(what, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    if end:
        lines += ["", *textwrap.wrap(end, width)]
    return "\n".join(lines) + "\n"
