"""Calls whose arguments are nested tags, each behind a mark: M<invoke name="find">M<tags>M<item>x M</item>M</tags>M</invoke>.

Owns that shape, which MiniMax M3 has: objects and lists become elements, so that a value is read by the tool's schema.
After common/parsers/minimax-m3.cpp of llama.cpp.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyggml.chat.reply.calls import Tools, bare_value, escaped, resolved
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_text import dump
from pyggml.chat.reply.reader import Reader, Step
from pyggml.grammar.composed import ComposedGrammar, literal

_DEEPEST = 64  # elements within elements; what lies deeper is a text
_MOST_WAYS = 16  # alternatives within alternatives
ITEM = "item"


@dataclass(frozen=True)
class NestedCalls:
    """section (M<invoke name="NAME"> element* M</invoke>)+ section_end; an element is M<KEY>value M</KEY>.

    A value is a text where the schema allows one, else elements, or JSON. Elements of a list are called "item".
    """

    mark: str
    section: str
    section_end: str
    call: str
    close: str
    ends_reasoning: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.section,)

    def read(self, reader: Reader, opening: str, sink: Sink, tools: Tools) -> Step[None]:
        """All calls of a section."""
        while True:
            yield from reader.space()
            if (yield from reader.take(self.section_end, self.call)) != self.call:
                return
            parts: list[str] = []
            if not (yield from reader.until(('">',), parts.append)):
                return
            name = "".join(parts).strip()
            sink.call(name)
            root = tools.schemas.get(name)
            first = yield from self._tag(reader, self.close)
            yield from self._members(reader, sink, root, root, self.close, first, 0)

    def _members(
        self, reader: Reader, sink: Sink, schema: Any, root: Any, close: str, key: str | None, depth: int
    ) -> Step[bool]:
        """An object's elements up to `close`, of which the first one's tag was read; whether they were all there."""
        sink.arguments("{")
        between = ""
        while key:
            sink.arguments(f"{between}{dump(key)}: ")
            between = ", "
            if not (yield from self._value(reader, sink, _property(schema, root, key), root, self.end(key), depth)):
                return False
            key = yield from self._tag(reader, close)
        if key is not None:
            sink.arguments("}")
        return key is not None

    def _items(self, reader: Reader, sink: Sink, items: Any, root: Any, close: str, depth: int) -> Step[bool]:
        """A list's elements up to `close`, of which the first one's tag was read; whether they were all there."""
        sink.arguments("[")
        key: str | None = ITEM
        while key:
            if not (yield from self._value(reader, sink, items, root, self.end(key), depth)):
                return False
            key = yield from self._tag(reader, close)
            if key:
                sink.arguments(", ")
        if key is not None:
            sink.arguments("]")
        return key is not None

    def _value(self, reader: Reader, sink: Sink, schema: Any, root: Any, close: str, depth: int) -> Step[bool]:
        """A value and what closes it; whether it was all there."""
        ways = list(_alternatives(schema, root))
        if depth >= _DEEPEST or any(map(_is_text, ways)):
            sink.arguments('"')
            found = yield from reader.until((close,), lambda text: sink.arguments(escaped(text)))
            sink.arguments('"' if found else "")
            return bool(found)
        yield from reader.space()
        taken = yield from reader.take(close, f"{self.mark}<")
        key = (yield from self._name(reader)) if taken and taken != close else ""
        if key is None:
            return False
        objects = [way for way in ways if _properties(way) or way.get("type") == "object"]
        lists = [way for way in ways if way.get("type") == "array"]
        if taken and not key:
            sink.arguments("[]" if lists else "{}" if objects else '""')
            return True
        if key == ITEM and (lists or not objects) and not any(ITEM in _properties(way) for way in ways):
            items = lists[0].get("items") if lists else None
            return (yield from self._items(reader, sink, items, root, close, depth + 1))
        if key:
            fitting = next((way for way in objects if key in _properties(way)), None)
            return (yield from self._members(reader, sink, fitting, root, close, key, depth + 1))
        parts: list[str] = []
        if not (yield from reader.until((close,), parts.append)):
            return False
        sink.arguments(bare_value("".join(parts), "other" if all(_is_typed(way) for way in ways) else "either"))
        return True

    def _tag(self, reader: Reader, close: str) -> Step[str | None]:
        """The next element's name; "" where `close` stands, or no element; None where the text was cut off."""
        yield from reader.space()
        taken = yield from reader.take(close, f"{self.mark}<")
        if taken == close:
            return ""
        if not taken:
            return None if reader.ended else ""
        return (yield from self._name(reader))

    def _name(self, reader: Reader) -> Step[str | None]:
        """The name in a tag that was begun; "" of one that closes another element, None where it was cut off."""
        name = yield from reader.word(">")
        if not (yield from reader.take(">")):
            return None
        return "" if name.startswith("/") else name.strip()

    def end(self, key: str) -> str:
        """What closes an element."""
        return f"{self.mark}</{key}>"

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool) -> str:
        """A section of calls by the tools' schemas. Required elements come first, in the schema's order."""
        ways = []
        for i, (name, schema) in enumerate(tools.schemas.items()):
            body = _Rules(self, out, f"tool-{i}", schema).members(resolved(schema, schema))
            head = literal(f'{self.call}{name}">')
            ways.append(out.rule(f"tool-{i}", f"{head} space {body} space {literal(self.close)}"))
        one = out.rule("tool", " | ".join(ways))
        calls = f"{one} (space {one})*" if several else one
        return out.rule("calls", f"{literal(self.section)} space {calls} space {literal(self.section_end)}")


class _Rules:
    """The rules of a tool's arguments."""

    def __init__(self, calls: NestedCalls, out: ComposedGrammar, name: str, root: Any) -> None:
        self._calls, self._out, self._name, self._root = calls, out, name, root
        self._made: dict[tuple[int, str], str] = {}  # schemas may hold themselves

    def members(self, schema: Any) -> str:
        """The elements of an object."""
        properties = _properties(schema)
        listed = schema.get("required") if isinstance(schema, Mapping) else None
        required = set(map(str, listed)) if isinstance(listed, list) else set()
        needed: list[str] = []
        others: list[str] = []
        for key, child in properties.items():
            (needed if key in required else others).append(self._element(key, child))
        inside = " space ".join(needed)
        if others:
            inside += f" (space ({' | '.join(others)}))*"
        return inside or '""'

    def _element(self, key: str, schema: Any) -> str:
        return f"{literal(f'{self._calls.mark}<{key}>')} {self._value(schema, self._calls.end(key))}"

    def _value(self, schema: Any, close: str) -> str:
        """A value and what closes it."""
        found = resolved(schema, self._root)
        place = (id(found), close)
        if place not in self._made:
            self._made[place] = name = self._out.rule(f"{self._name}-value-{len(self._made)}", literal(close))
            ways = list(_alternatives(found, self._root))
            if any(_is_text(way) or not _is_typed(way) for way in ways):
                text = f"{self._out.until(close)} {literal(close)}"
            else:
                text = " | ".join(self._way(f"{name}-{i}", way, close) for i, way in enumerate(ways))
            self._out.instead(name, text)
        return self._made[place]

    def _way(self, name: str, way: Mapping[str, Any], close: str) -> str:
        if _properties(way):
            return f"space {self.members(way)} space {literal(close)}"
        if way.get("type") == "array":
            return f"(space {self._element(ITEM, way.get('items'))})* space {literal(close)}"
        return f"{self._out.schema(name, way)} {literal(close)}"


def _alternatives(schema: Any, root: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The schemas of which a value has one: those of anyOf and oneOf, and one for each type that is listed."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth > _MOST_WAYS:
        yield {}
        return
    listed = next((schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)), None)
    if listed is not None:
        for child in listed:
            yield from _alternatives(child, root, depth + 1)
    elif isinstance(schema.get("type"), list):
        for kind in schema["type"]:
            yield {**schema, "type": kind}
    else:
        yield schema


def _properties(schema: Any) -> Mapping[str, Any]:
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _property(schema: Any, root: Any, key: str) -> Any:
    """The schema of an object's member, None if it has none."""
    return next((found[key] for way in _alternatives(schema, root) if key in (found := _properties(way))), None)


def _is_text(schema: Mapping[str, Any]) -> bool:
    """Whether it allows a text, with which all that is written may be meant."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return any(isinstance(value, str) for value in values)
    return schema.get("type") == "string"


def _is_typed(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get("type"), str) or any(key in schema for key in ("enum", "const", "properties"))
