"""`--models-preset`: an INI file that says with which flags each model of a server is loaded (llama.cpp: common/preset.cpp).

Owns the file's grammar, and the step from its keys to flags; knows no model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyggml_cli.flags import FALSE, TRUE, Flag, Row, UsageError, seconds
from pyggml_cli.text_files import read_text

ALL, FIRST = "*", "default"
"""The section whose keys are for all models, and what is before any section (COMMON_PRESET_DEFAULT_NAME)."""
_HEADER = re.compile(r"\[[ \t]*([^\]]+?)[ \t]*\][ \t]*(?:[;#].*)?")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*([^;#]*?)[ \t]*(?:[;#].*)?")
_BLANK = re.compile(r"[ \t]*(?:[;#].*)?")
_TAG = re.compile(r"[-.]([A-Za-z0-9_]+)$")
OF_THE_SERVER = frozenset((
    "host", "port", "api_prefix", "api_key", "api_key_file", "cors_origins", "cors_methods", "cors_headers", "cors_credentials",
    "ssl_key", "ssl_cert", "ui", "max_body", "timeout", "grace", "max_connections", "header_timeout",
    "models_dir", "models_cache", "models_preset", "models_max", "models_autoload",
))  # fmt: skip
"""Values that are the whole server's, whatever a section says (tools/server/server-models.cpp: unset_reserved_args)."""


@dataclass
class Section:
    """The keys of a section and their values, as they stand there; `where` begins what is said of it."""

    where: str
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """What a section asks for: flags and their arguments, and what is no flag."""

    flags: tuple[str, ...]
    at_start: bool = False
    patience: float | None = None
    hides_cached: bool = False
    notes: tuple[str, ...] = ()


def sections(path: str) -> dict[str, Section]:
    """The sections of a file by their names, `*` first. Raises UsageError, OSError."""
    found = {ALL: Section(f"{path}, [{ALL}]"), FIRST: Section(path)}
    lines: dict[str, int] = {}
    here = found[FIRST]
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path, encoding="utf-8-sig")), 1):
        if _BLANK.fullmatch(line):
            continue
        if header := _HEADER.fullmatch(line):
            name = canonical(header[1])
            if name in lines:
                raise UsageError(f"{path}: [{name}] is in lines {lines[name]} and {number}: must be there once")
            lines[name] = number
            here = found[name] = Section(f"{path}, [{name}]")
        elif key := _KEY.fullmatch(line):
            here.options[key[1]] = key[2]
        else:
            raise UsageError(f"{path}: line {number} is neither [SECTION] nor KEY = VALUE: {line.strip()[:80]!r}")
    for section in found.values():
        section.options.pop("version", None)
    if not found[FIRST].options:
        del found[FIRST]
    return found


def canonical(name: str) -> str:
    """USER/REPO:QUANT with QUANT as models of the caches are named: what follows its last - or . in capitals."""
    repo, colon, tag = name.rpartition(":")
    if not colon:
        return name
    found = _TAG.search(tag)
    return f"{repo}:{(found[1] if found else tag).upper()}"


def preset_of(
    given: Sequence[Section], rows: Sequence[Row], variables: Mapping[str, str], named: frozenset[str] | set[str]
) -> Preset:
    """What sections ask for, of which later ones count for more; but nothing where the command line has `named` a value itself.
    Raises UsageError for a key that there is none of."""
    table = _table(rows, variables)
    flags: dict[int, list[str]] = {}  # by row
    special: dict[str, str] = {}
    where = {}
    notes = []
    for section in given:
        for key, value in section.options.items():
            where[key] = f"{section.where}: {key}"
            if key in ("load-on-startup", "stop-timeout", "dedup-cache-models"):
                special[key] = value
                continue
            row, name, on = table.get(key) or table.get(key.replace("_", "-")) or (None, "", False)
            if row is None:
                raise UsageError(f"{where[key]}: there is no flag of this name; --help lists them")
            if isinstance(row, Flag) and row.dest in OF_THE_SERVER:
                notes.append(f"note: {where[key]} makes no difference: it is the whole server's, from the command line")
            elif not (isinstance(row, Flag) and row.dest in named):
                flags[id(row)] = _words(row, name, on, value, where[key])
    try:
        patience = seconds()(special["stop-timeout"]) if "stop-timeout" in special else None
    except ValueError as reason:
        raise UsageError(f"{where['stop-timeout']} = {special['stop-timeout']}: {reason}") from None
    switches = [
        key in special and _switch(special[key], where[key]) for key in ("load-on-startup", "dedup-cache-models")
    ]
    return Preset(
        tuple(word for words in flags.values() for word in words), switches[0], patience, switches[1], tuple(notes)
    )


def _table(rows: Sequence[Row], variables: Mapping[str, str]) -> dict[str, tuple[Row, str, bool]]:
    """Key -> its row, the flag's name and whether that turns it on: names without their dashes, and those of variables."""
    by_flag = {name: (row, name, name in row.names) for row in rows for name in (*row.names, *row.off)}
    found = {name.lstrip("-"): one for name, one in by_flag.items()}
    for variable, flag in variables.items():
        if flag in by_flag:
            found[variable], off = by_flag[flag], by_flag[flag][0].off
            if off:
                found[variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")] = by_flag[off[0]]
    return found


def _words(row: Row, name: str, on: bool, value: str, where: str) -> list[str]:
    count = (row.count if row.parse else 0) if isinstance(row, Flag) else row.n_args
    if count > 1:
        raise UsageError(f"{where}: a flag of {count} arguments, which has no place in a line")
    if count:
        return [name, value]
    if _switch(value, where):
        return [name]
    other = row.off if on else row.names
    return [other[-1]] if other else []


def _switch(value: str, where: str) -> bool:
    if value not in TRUE + FALSE:
        raise UsageError(f"{where} = {value[:80]}: must be one of {', '.join(TRUE + FALSE)}")
    return value in TRUE
