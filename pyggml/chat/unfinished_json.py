"""JSON that is still being written: where the members of an object are, and what a string says so far.

Owns the scan; it is lenient, as what it reads may be wrong in the end.
"""

import json
import re
from typing import NamedTuple

_SPACE = " \t\r\n"
_CUT_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,3})?$")
_HALF_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?$")


class Value(NamedTuple):
    """Text from `start` to `end` of what was scanned; `whole`: it is complete."""

    start: int
    end: int
    whole: bool


def skip_space(text: str, at: int) -> int:
    """Where something else than white space comes."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def value_at(text: str, at: int) -> Value:
    """The value that begins at `at`, which is no white space."""
    if at >= len(text):
        return Value(at, at, False)
    if text[at] == '"':
        end = _string_end(text, at)
        return Value(at, len(text) if end is None else end, end is not None)
    if text[at] in "{[":
        depth, i = 0, at
        while i < len(text):
            c = text[i]
            if c == '"':
                end = _string_end(text, i)
                if end is None:
                    break
                i = end
                continue
            depth += (c in "{[") - (c in "}]")
            i += 1
            if not depth:
                return Value(at, i, True)
        return Value(at, len(text), False)
    end = at
    while end < len(text) and text[end] not in _SPACE + ",]}":
        end += 1
    return Value(at, end, end < len(text))


def _string_end(text: str, at: int) -> int | None:
    i = at + 1
    while i < len(text):
        if text[i] == "\\":
            i += 2
        elif text[i] == '"':
            return i + 1
        else:
            i += 1
    return None


def members(text: str, at: int) -> tuple[dict[str, Value], Value] | None:
    """The members of the object at `at` as far as they are there, and the object itself. None: there is none."""
    if at >= len(text) or text[at] != "{":
        return None
    whole = value_at(text, at)
    found: dict[str, Value] = {}
    i = at + 1
    while True:
        i = skip_space(text, i)
        if i < len(text) and text[i] == ",":
            i = skip_space(text, i + 1)
        if i >= len(text) or text[i] != '"':
            return found, whole
        key = value_at(text, i)
        i = skip_space(text, key.end)
        if not key.whole or i >= len(text) or text[i] != ":":
            return found, whole
        i = skip_space(text, i + 1)
        value = value_at(text, i)
        if value.end > value.start:
            found[string(text[key.start : key.end])] = value
        if not value.whole:
            return found, whole
        i = value.end


def string(text: str) -> str:
    """What a string says, which begins with its quote, and may end before its end."""
    body = text[1:]
    if value_at(text, 0).whole:
        body = body[:-1]
    else:
        body = _CUT_ESCAPE.sub("", _HALF_PAIR.sub("", body))
    try:
        said = json.loads(f'"{body}"', strict=False)
    except ValueError:
        return body
    return str(said).encode("utf-8", "replace").decode()
