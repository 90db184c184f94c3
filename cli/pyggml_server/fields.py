"""JSON of a request, read field by field: every value that is not what it should be is a RequestError that names its field.

Owns reading a body and the checks of single values.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from pyggml.number_text import json_integer
from pyggml_server.errors import RequestError

MISSING: Any = object()
LARGEST = 3.4e38  # of single precision
I32 = (1 << 31) - 1
DEEPEST = 256  # levels of a body's JSON: what was read has to be written, too, wherever that happens
MOST_VALUES = 1 << 20  # of a body's JSON: each is an object of Python, of 28 bytes to 200


def read_json(data: bytes) -> Any:
    """A body's JSON. Raises RequestError."""
    n = sum(data.count(mark) for mark in (b",", b"[", b"{"))  # in texts too: a text of so many has no room in a context
    if n > MOST_VALUES:
        raise RequestError(f"the body's JSON has {n} commas and brackets, at most {MOST_VALUES} are taken", status=413)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise RequestError(f"the body is not UTF-8: byte {reason.start} is wrong") from None
    try:
        plain = text.removeprefix("\ufeff")
        found = json.loads(plain, parse_constant=_no_constant, parse_float=_finite, parse_int=json_integer)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError("the body has half of a surrogate pair, which is no character") from None
    except ValueError as reason:
        raise RequestError(f"the body is not JSON: {' '.join(str(reason).split())[:200]}") from None
    except RecursionError:
        raise _too_deep() from None
    if _is_deeper(found, DEEPEST):
        raise _too_deep()
    return found


def _is_deeper(found: Any, most: int) -> bool:
    """Whether there are more than `most` objects and arrays inside each other."""
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(most):
        if not level:
            break
        inside = (value for one in level for value in (one.values() if isinstance(one, dict) else one))
        level = [value for value in inside if isinstance(value, dict | list)]
    return bool(level)


def _too_deep() -> RequestError:
    return RequestError(f"the body's JSON is nested too deeply: at most {DEEPEST} levels are taken")


def as_fields(found: Any) -> "Fields":
    """A body that has to be an object. Raises RequestError."""
    if not isinstance(found, dict):
        raise RequestError(f"the body must be a JSON object, it is {_kind(found)}")
    return Fields(found)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits[:40]} is larger than any number of double precision")
    return number


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return names[type(value)]


class Fields:
    """One JSON object of a request. A field that is null counts as not given. `path` is where it stands in the body."""

    def __init__(self, data: dict[str, Any], path: str = "") -> None:
        self.data, self.path = data, path

    def name(self, field: str) -> str:
        """The field's full name."""
        return f"{self.path}.{field}" if self.path else field

    def wrong(self, field: str, must: str) -> RequestError:
        """What to raise for a field's value."""
        shown = json.dumps(self.data.get(field))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return RequestError(f"{self.name(field)} is {shown}: {must}", param=self.name(field))

    def has(self, field: str) -> bool:
        """Whether it is given."""
        return self.data.get(field) is not None

    def first(self, *fields: str) -> str:
        """Of several names for the same the one that is given, else the first."""
        return next((field for field in fields if self.has(field)), fields[0])

    def raw(self, field: str) -> Any:
        """Its value as it is. Raises RequestError where it is missing."""
        if not self.has(field):
            raise RequestError(f"{self.name(field)} is missing", param=self.name(field))
        return self.data[field]

    def text(self, field: str, default: Any = MISSING) -> Any:
        """A string."""
        if not self.has(field) and default is not MISSING:
            return default
        if not isinstance(value := self.raw(field), str):
            raise self.wrong(field, "must be a string")
        return value

    def boolean(self, field: str, default: bool) -> bool:
        """true or false."""
        if not self.has(field):
            return default
        if not isinstance(value := self.data[field], bool):
            raise self.wrong(field, "must be true or false")
        return value

    def integer(self, field: str, default: Any = MISSING, low: int = -I32 - 1, high: int = I32) -> Any:
        """A whole number from `low` to `high`; 16.0 is one too."""
        if not self.has(field) and default is not MISSING:
            return default
        value = self.raw(field)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(field, f"must be a whole number from {low} to {high}")
        return value

    def number(self, field: str, default: Any = MISSING, low: float = -LARGEST, high: float = LARGEST) -> Any:
        """A number from `low` to `high`."""
        if not self.has(field) and default is not MISSING:
            return default
        value = self.raw(field)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            bounds = "" if high == LARGEST and low == -LARGEST else f" from {low:g} to {high:g}"
            raise self.wrong(field, f"must be a number{bounds}")
        return float(value)

    def choice(self, field: str, allowed: tuple[str, ...], default: Any = MISSING) -> Any:
        """One of a few strings."""
        value = self.text(field, default)
        if value is not default and value not in allowed:
            raise self.wrong(field, f"must be one of {', '.join(allowed)}")
        return value

    def items(self, field: str, default: Any = MISSING) -> Any:
        """An array."""
        if not self.has(field) and default is not MISSING:
            return default
        if not isinstance(value := self.raw(field), list):
            raise self.wrong(field, "must be an array")
        return value

    def texts(self, field: str, largest: int) -> list[str]:
        """A string, or an array of at most `largest`; nothing given is none."""
        if not self.has(field):
            return []
        value = self.data[field]
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
            raise self.wrong(field, "must be a string, or an array of strings")
        if len(several) > largest:
            raise RequestError(
                f"{self.name(field)} has {len(several)} items, at most {largest} are taken", param=self.name(field)
            )
        return several

    def object(self, field: str) -> "Fields | None":
        """An object; None where it is not given."""
        if not self.has(field):
            return None
        if not isinstance(value := self.data[field], dict):
            raise self.wrong(field, "must be an object")
        return Fields(value, self.name(field))

    def objects(self, field: str) -> Iterator["Fields"]:
        """The objects of an array; nothing given is none."""
        for i, value in enumerate(self.items(field, [])):
            if not isinstance(value, dict):
                raise RequestError(
                    f"{self.name(field)}[{i}] must be an object, it is {_kind(value)}", param=f"{self.name(field)}[{i}]"
                )
            yield Fields(value, f"{self.name(field)}[{i}]")
