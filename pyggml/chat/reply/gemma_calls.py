"""Gemma 4's calls: <|tool_call>call:name{key:<|"|>text<|"|>,other:[1,2]}<tool_call|>.

Owns that shape: JSON without quotes around keys, and with a token of its own around texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyggml.chat.reply.calls import Tools, bare_value, escaped, resolved
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_text import dump
from pyggml.chat.reply.reader import Reader, Step
from pyggml.grammar.composed import ComposedGrammar, literal

QUOTE = '<|"|>'


@dataclass(frozen=True)
class GemmaCalls:
    openings: tuple[str, ...] = ("<|tool_call>",)
    closing: str = "<tool_call|>"
    quote: str = QUOTE
    ends_reasoning: bool = False

    def read(self, reader: Reader, opening: str, sink: Sink, tools: Tools) -> Step[None]:
        """One call."""
        yield from reader.space()
        yield from reader.take("call:")
        name = yield from reader.word("{<")
        sink.call(name.strip())
        yield from _value(reader, sink)
        yield from reader.space()
        yield from reader.take(self.closing)

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool) -> str:
        """Calls by the tools' schemas, as deep as these name properties and items."""
        ways = []
        for i, (name, schema) in enumerate(tools.schemas.items()):
            value = _rule(out, f"tool-{i}", {"type": "object", **schema}, schema)
            ways.append(
                out.rule(f"tool-{i}", f"{literal(self.openings[0] + 'call:' + name)} {value} {literal(self.closing)}")
            )
        one = out.rule("tool", " | ".join(ways))
        return out.rule("calls", f"{one}+" if several else one)


_DEEPEST = 16  # schemas within schemas; below, any value is taken
_DEEPEST_READ = 64  # values within values


def _rule(out: ComposedGrammar, name: str, schema: Any, root: Any, depth: int = 0) -> str:
    """The rule of a value of this schema."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return _any(out)
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = schema.get("enum", [schema.get("const")])
        texts = [QUOTE + v + QUOTE if isinstance(v, str) else dump(v) for v in values]
        return out.rule(f"{name}-v", " | ".join(map(literal, texts)))
    for several in ("anyOf", "oneOf"):
        if isinstance(schema.get(several), list):
            ways = [_rule(out, f"{name}-{j}", child, root, depth + 1) for j, child in enumerate(schema[several])]
            return out.rule(f"{name}-v", " | ".join(ways))
    kind = schema.get("type")
    if isinstance(kind, list):
        ways = [_rule(out, f"{name}-{j}", {**schema, "type": each}, root, depth + 1) for j, each in enumerate(kind)]
        return out.rule(f"{name}-v", " | ".join(ways))
    if kind == "string":
        return _string(out)
    if kind in ("integer", "number", "boolean", "null"):
        return out.schema(f"{name}-v", schema)
    if kind == "array":
        item = _rule(out, f"{name}-i", schema.get("items"), root, depth + 1)
        return out.rule(f"{name}-v", f'"[" ({item} ("," {item})*)? "]"')
    properties = schema.get("properties")
    if kind != "object":
        return _any(out)
    if not isinstance(properties, Mapping) or not properties:
        inside = f'(gemma-key ":" {_any(out)} ("," gemma-key ":" {_any(out)})*)?'
        return out.rule(f"{name}-v", '"{}"' if properties is not None and not depth else f'"{{" {inside} "}}"')
    listed = schema.get("required")
    required = set(listed) if isinstance(listed, list) else set()
    pairs = {
        key: out.rule(f"{name}-{key}-p", f'{literal(key)} ":" {_rule(out, f"{name}-{key}", child, root, depth + 1)}')
        for key, child in properties.items()
    }
    needed = [pair for key, pair in pairs.items() if key in required]
    others = [pair for key, pair in pairs.items() if key not in required]
    inside = ' "," '.join(needed)
    if others:
        other = out.rule(f"{name}-o", " | ".join(others))
        inside = f'{inside} ("," {other})*' if needed else f'({other} ("," {other})*)?'
    return out.rule(f"{name}-v", f'"{{" {inside} "}}"')


def _string(out: ComposedGrammar) -> str:
    return out.rule("gemma-string", f"{literal(QUOTE)} {out.until(QUOTE)} {literal(QUOTE)}")


def _any(out: ComposedGrammar) -> str:
    scalars = " | ".join([_string(out), *(out.builtin(kind) for kind in ("number", "boolean", "null"))])
    out.rule("gemma-key", "[a-zA-Z0-9_.$-]+")
    return out.rule(
        "gemma-value",
        f'{scalars} | "[" (gemma-value ("," gemma-value)*)? "]"'
        ' | "{" (gemma-key ":" gemma-value ("," gemma-key ":" gemma-value)*)? "}"',
    )


def _value(reader: Reader, sink: Sink, depth: int = 0) -> Step[None]:
    """A value; brackets that lie too deep are read as text."""
    yield from reader.space()
    if (yield from reader.take(QUOTE)):
        sink.arguments('"')
        if (yield from reader.until((QUOTE,), lambda text: sink.arguments(escaped(text)))):
            sink.arguments('"')
        return
    opening = (yield from reader.take("{", "[")) if depth < _DEEPEST_READ else ""
    if not opening:
        word = yield from reader.word(",]}")
        if reader.text:
            sink.arguments(bare_value(word, "either"))
        return
    sink.arguments(opening)
    closing = "}" if opening == "{" else "]"
    first = True
    while True:
        yield from reader.space()
        if (yield from reader.take(closing)):
            sink.arguments(closing)
            return
        if not (yield from reader.more()):
            return
        if opening == "{":
            key = yield from _key(reader)
            if not (yield from reader.take(":")):
                return
            sink.arguments(("" if first else ",") + dump(key) + ":")
        elif not first:
            sink.arguments(",")
        yield from _value(reader, sink, depth + 1)
        first = False
        yield from reader.space()
        yield from reader.take(",")


def _key(reader: Reader) -> Step[str]:
    if (yield from reader.take(QUOTE)):
        parts: list[str] = []
        yield from reader.until((QUOTE,), parts.append)
        return "".join(parts)
    return (yield from reader.word(":}")).strip().strip('"')
