"""What the shapes of tool calls have in common: the tools' schemas, and how text becomes an argument.

Owns `Tools` and the protocol `Calls`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step
from pyggml.grammar import ComposedGrammar


class Calls(Protocol):
    """How a family of models writes calls."""

    @property
    def openings(self) -> tuple[str, ...]:
        """Markers of which each begins calls."""

    @property
    def ends_reasoning(self) -> bool:
        """Whether an opening within reasoning ends that, where the model forgot to."""

    def read(self, reader: Reader, opening: str, sink: Sink, tools: "Tools") -> Step[None]:
        """Read what follows `opening`."""

    def grammar(self, out: ComposedGrammar, tools: "Tools", several: bool) -> str:
        """The rule of one call of any of the tools, or of several; what is put between tags is `out`'s."""


class Tools:
    """The tools that a request offers, in OpenAI's form: {"type": "function", "function": {"name", "parameters"}}."""

    def __init__(self, tools: Iterable[Mapping[str, Any]] = ()) -> None:
        self.schemas: dict[str, Any] = {}
        for tool in tools:
            function = tool.get("function", tool)
            self.schemas[str(function.get("name"))] = function.get("parameters") or {"type": "object", "properties": {}}

    def __bool__(self) -> bool:
        return bool(self.schemas)

    def only(self, name: str) -> "Tools":
        """This one alone."""
        out = Tools()
        out.schemas = {name: self.schemas[name]}
        return out

    def arguments(self, name: str) -> list[tuple[str, Any, bool]]:
        """Name, schema and whether it is required, of each argument that a tool declares."""
        schema = resolved(self.schemas[name], self.schemas[name])
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        required = schema.get("required") if isinstance(schema, Mapping) else None
        wanted = set(required) if isinstance(required, list) else set()
        if not isinstance(properties, Mapping):
            return []
        return [(key, resolved(value, self.schemas[name]), key in wanted) for key, value in properties.items()]

    def value_grammar(self, out: ComposedGrammar, i: int, name: str, key: str) -> str:
        """The rule of an argument's JSON; references in it lead into the tool's schema."""
        root, found = self.schemas[name], self.argument(name, key)
        shared = {where: root[where] for where in ("$defs", "definitions") if where in root}
        return out.schema(f"tool-{i}-{key}", {**shared, **found} if isinstance(found, Mapping) else found)

    def argument(self, name: str, key: str) -> Any:
        """The schema of one argument, None if there is none."""
        schema = self.schemas.get(name)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        found = properties.get(key) if isinstance(properties, Mapping) else None
        return found if not isinstance(found, Mapping) else resolved(found, schema)


def resolved(schema: Any, root: Any) -> Any:
    """The schema that a "$ref" within the same document leads to."""
    for _ in range(32):
        ref = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(ref, str) or not ref.startswith("#/"):
            return schema
        schema = root
        for part in ref[2:].split("/"):
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return schema


def text_kind(schema: Any) -> str:
    """Whether an argument written as bare text is "string", "other" (JSON), or "either" of them."""
    if not isinstance(schema, Mapping):
        return "either"
    kinds: set[str] = set()
    for child in [schema, *_children(schema)]:
        kind = child.get("type") if isinstance(child, Mapping) else None
        kinds.update([kind] if isinstance(kind, str) else kind if isinstance(kind, list) else [])
        if isinstance(child, Mapping) and kind is None:
            values = child.get("enum", [child["const"]] if "const" in child else [])
            if isinstance(values, list):
                kinds.update("string" if isinstance(value, str) else "other" for value in values)
    if kinds == {"string"}:
        return "string"
    return "either" if "string" in kinds or not kinds else "other"


def _children(schema: Mapping[str, Any]) -> list[Any]:
    return [child for key in ("anyOf", "oneOf") for child in schema.get(key, []) if isinstance(schema.get(key), list)]


def escaped(text: str) -> str:
    """A piece of a JSON string, without its quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def bare_value(text: str, kind: str) -> str:
    """An argument written as bare text, as JSON: by its kind, and by what it reads like."""
    if kind != "string":
        bare = text.strip()
        for candidate in (bare, {"True": "true", "False": "false", "None": "null"}.get(bare, bare)):
            try:
                json.loads(candidate)
            except (ValueError, RecursionError):
                continue
            return candidate
    return json.dumps(text, ensure_ascii=False)
