"""A JSON schema, checked and brought into few kinds of nodes.

Owns which keywords count and in what order. The subset and its order are llama.cpp's (common/json-schema.cpp); what it
refuses is refused here, with the path.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyggml.errors import GrammarError
from pyggml.grammar.parser import MAX_REPETITION

MAX_DEPTH = 100  # schemas inside each other
MAX_NUMBER = (1 << 63) - 1  # llama.cpp reads bounds as 64-bit numbers
MAX_NODES = 5_000


@dataclass
class Anything:
    """Any JSON value."""


@dataclass
class Primitive:
    """number, boolean or null."""

    name: str


@dataclass
class RefNode:
    """{"$ref": "#/..."}; `target` is set once all of the schema is read."""

    ref: str
    target: "Node | None" = None


@dataclass
class AnyOf:
    """One of several schemas; also oneOf, and several types."""

    children: list["Node"]


@dataclass
class AllOf:
    """All of several schemas."""

    children: list["Node"]


@dataclass
class Const:
    """One of these values; `single`: written as const."""

    values: list[Any]
    single: bool


@dataclass
class Property:
    """A member of an object."""

    name: str
    node: "Node"
    required: bool


@dataclass
class Object:
    """Members, and what others may be; None: there are no others."""

    properties: list[Property] = field(default_factory=list)
    additional: "Node | None" = None


@dataclass
class Tuple:
    """An array of exactly these."""

    items: list["Node"]


@dataclass
class Array:
    """An array of one kind of items; `high` None: without end."""

    items: "Node"
    low: int = 0
    high: int | None = None


@dataclass
class String:
    """A text; `form`: "", uuid, date, time or date-time."""

    pattern: str
    form: str
    low: int
    high: int | None


@dataclass
class Integer:
    """A whole number from `low` to `high`, None: without end."""

    low: int | None
    high: int | None


Node = Anything | Primitive | RefNode | AnyOf | AllOf | Const | Object | Tuple | Array | String | Integer

_FORMS = {"date": "date", "time": "time", "date-time": "date-time", "uuid": "uuid"}
_FORMS |= {f"uuid{version}": "uuid" for version in range(1, 6)}


def read_schema(schema: Any) -> Node:
    """The nodes of a parsed JSON schema. Raises GrammarError."""
    reader = _Reader(schema)
    root = reader.node(schema, "#", 0)
    for ref in reader.pending:
        ref.target = reader.targets[ref.ref]
    return root


def _fail(path: str, message: str) -> GrammarError:
    return GrammarError(f"JSON schema at {path}: {message}")


def _count(schema: dict[str, Any], key: str, path: str) -> int | None:
    value = schema.get(key)
    if key in schema and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER):
        raise _fail(path, f"{key} must be a whole number, not negative and at most {MAX_NUMBER}")
    return value


def _counts(schema: dict[str, Any], what: str, path: str, most: int) -> tuple[int, int | None]:
    """minLength and maxLength, or minItems and maxItems; beyond `most` a maximum is none (parser.py), a minimum an error."""
    low, high = _count(schema, f"min{what}", path) or 0, _count(schema, f"max{what}", path)
    if low > most:
        raise _fail(path, f"min{what} is {low}, at most {most} can be followed")
    if high is not None and high < low:
        raise _fail(path, f"min{what} is {low}, max{what} only {high}")
    return low, high


def _bound(schema: dict[str, Any], key: str, path: str, rounded: Callable[[float], int]) -> int:
    value = schema[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _fail(path, f"{key} must be a number")
    if not -MAX_NUMBER <= value <= MAX_NUMBER:  # NaN too; a number of any size is compared exactly
        raise _fail(path, f"{key} must be a number from {-MAX_NUMBER} to {MAX_NUMBER}")
    return value if isinstance(value, int) else rounded(value)


class _Reader:
    def __init__(self, root: Any) -> None:
        self.root = root
        self.targets: dict[str, Node | None] = {}
        self.pending: list[RefNode] = []
        self.n_nodes = 0

    def node(self, schema: Any, path: str, depth: int) -> Node:
        self.n_nodes += 1
        if depth > MAX_DEPTH:
            raise _fail(path, f"more than {MAX_DEPTH} schemas inside each other")
        if self.n_nodes > MAX_NODES:
            raise _fail(path, f"more than {MAX_NODES} schemas in all")
        if not isinstance(schema, dict):
            raise _fail(path, "a schema must be an object")
        if "$ref" in schema:
            return self._ref(schema["$ref"], path, depth)
        for key in ("oneOf", "anyOf"):
            if key in schema:
                return AnyOf(self._several(schema[key], f"{path}/{key}", depth))
        kind = schema.get("type")
        if isinstance(kind, list):
            if not kind:
                raise _fail(path, "type must not be empty")
            alternatives = [{**schema, "type": name} for name in kind]
            return AnyOf([self.node(s, f"{path}/type/{i}", depth + 1) for i, s in enumerate(alternatives)])
        if "const" in schema:
            return Const([schema["const"]], True)
        if "enum" in schema:
            values = schema["enum"]
            if not isinstance(values, list) or not values:
                raise _fail(path, "enum must be an array with at least one value")
            if len(values) > MAX_NODES:
                raise _fail(path, f"enum has {len(values)} values, at most {MAX_NODES} can be followed")
            return Const(values, False)
        if kind is not None and not isinstance(kind, str):
            raise _fail(path, "type must be a string or an array of strings")
        return self._typed(schema, kind or "", path, depth)

    def _typed(self, schema: dict[str, Any], kind: str, path: str, depth: int) -> Node:
        has_properties = "properties" in schema or schema.get("additionalProperties", True) is not True
        if "allOf" in schema and not has_properties and kind in ("", "object"):
            return AllOf(self._several(schema["allOf"], f"{path}/allOf", depth))
        if "allOf" in schema and kind == "string":
            return AllOf(self._several(schema["allOf"], f"{path}/allOf", depth))
        if kind == "object" or (not kind and has_properties):
            return self._object(schema, path, depth)
        if kind == "array" or (not kind and ("items" in schema or "prefixItems" in schema)):
            return self._array(schema, path, depth)
        stringlike = any(key in schema for key in ("pattern", "minLength", "maxLength")) or self._form(schema, path)
        if kind == "string" or (not kind and stringlike):
            return self._string(schema, path)
        if kind == "integer":
            return self._integer(schema, path)
        if kind in ("number", "boolean", "null"):
            return Primitive(kind)
        if kind:
            raise _fail(path, f"unknown type {kind!r}")
        return Anything()

    def _ref(self, ref: Any, path: str, depth: int) -> Node:
        if not isinstance(ref, str):
            raise _fail(path, "$ref must be a string")
        if not ref.startswith("#/"):
            raise _fail(path, f"$ref {ref!r}: only references into the same document, #/..., are known")
        if ref not in self.targets:
            self.targets[ref] = None  # a cycle that comes back here stops
            self.targets[ref] = self.node(self._resolve(ref, path), ref, depth + 1)
        node = RefNode(ref)
        self.pending.append(node)
        return node

    def _resolve(self, ref: str, path: str) -> Any:
        target = self.root
        for name in ref.split("/")[1:]:
            if isinstance(target, dict) and name in target:
                target = target[name]
            elif isinstance(target, list) and name.isdecimal() and int(name[:9]) < len(target):
                target = target[int(name[:9])]
            else:
                raise _fail(path, f"$ref {ref!r}: there is no {name!r}")
        return target

    def _several(self, schemas: Any, path: str, depth: int) -> list[Node]:
        if not isinstance(schemas, list) or not schemas:
            raise _fail(path, "must be an array of at least one schema")
        return [self.node(schema, f"{path}/{i}", depth + 1) for i, schema in enumerate(schemas)]

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> Node:
        listed = schema.get("required")
        required = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise _fail(path, "properties must be an object")
        out = Object()
        for name, value in properties.items():
            inner = self.node(value, f"{path}/properties/{name}", depth + 1)
            out.properties.append(Property(name, inner, name in required))
        more = schema.get("additionalProperties", "properties" not in schema)
        if isinstance(more, dict):
            out.additional = self.node(more, f"{path}/additionalProperties", depth + 1)
        elif more is True:
            out.additional = Anything()
        elif more is not False:
            raise _fail(path, "additionalProperties must be true, false or a schema")
        return out

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> Node:
        key = "items" if "items" in schema else "prefixItems"
        items = schema.get(key, {})
        if isinstance(items, list):
            return Tuple([self.node(item, f"{path}/{key}/{i}", depth + 1) for i, item in enumerate(items)])
        node = self.node(items, f"{path}/{key}", depth + 1) if key in schema else Anything()
        return Array(node, *_counts(schema, "Items", path, MAX_REPETITION + 1))  # the first one is not repeated

    def _form(self, schema: dict[str, Any], path: str) -> str:
        form = schema.get("format", "")
        if not isinstance(form, str):
            raise _fail(path, "format must be a string")
        return _FORMS.get(form, "")

    def _string(self, schema: dict[str, Any], path: str) -> Node:
        pattern = schema.get("pattern", "")
        if not isinstance(pattern, str):
            raise _fail(path, "pattern must be a string")
        form = self._form(schema, path)
        counted = not pattern and not form  # else its length is given by these
        return String(pattern, form, *(_counts(schema, "Length", path, MAX_REPETITION) if counted else (0, None)))

    def _integer(self, schema: dict[str, Any], path: str) -> Node:
        out = Integer(None, None)
        if "minimum" in schema:
            out.low = _bound(schema, "minimum", path, math.ceil)
        elif "exclusiveMinimum" in schema:
            out.low = _bound(schema, "exclusiveMinimum", path, math.floor) + 1
        if "maximum" in schema:
            out.high = _bound(schema, "maximum", path, math.floor)
        elif "exclusiveMaximum" in schema:
            out.high = _bound(schema, "exclusiveMaximum", path, math.ceil) - 1
        return out
