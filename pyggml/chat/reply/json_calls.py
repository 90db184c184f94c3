"""Calls written as JSON objects that hold their name: <tool_call>{"name": ..., "arguments": {...}}</tool_call> and the like.

Owns the shape that many formats share with other markers and keys.
"""

from dataclasses import dataclass

from pyggml.chat.reply import json_text
from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step
from pyggml.grammar.composed import ComposedGrammar, literal


@dataclass(frozen=True)
class JsonCalls:
    """One object, or a list of them, after an opening marker; an object within the key "function" is read too.

    openings       markers of which each begins one call, or a list of calls
    closing        what ends it; it may be missing at the end of the reply
    name           the key of the tool's name; "" where the name itself is the key, and the arguments its value
    arguments, id  the keys of these; id "" where the model writes none
    """

    openings: tuple[str, ...]
    closing: str = ""
    name: str = "name"
    arguments: str = "arguments"
    id: str = ""
    id_rule: str = '"\\"" [a-zA-Z0-9]{9} "\\""'  # GBNF
    id_first: bool = False
    in_list: bool = False  # as it is written by the grammar; both are read
    ends_reasoning: bool = False

    def read(self, reader: Reader, opening: str, sink: Sink, tools: Tools) -> Step[None]:
        """What follows an opening marker."""
        yield from reader.space()
        in_list = opening.endswith("[") or bool((yield from reader.take("[")))
        while True:
            yield from reader.space()
            if not (yield from reader.more()) or reader.text[0] != "{":
                break
            yield from self.one(reader, sink)
            yield from reader.space()
            if not (yield from reader.take(",", ";")):
                break
        if in_list:
            yield from reader.take("]")
            yield from reader.space()
        if self.closing:
            yield from reader.take(self.closing)

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool) -> str:
        """The opening marker, an object or a list of them, and what ends it."""
        objects = []
        for i, (name, schema) in enumerate(tools.schemas.items()):
            value = out.schema(f"tool-{i}-arguments", schema)
            said = literal(json_text.dump(name))
            if not self.name:
                members = [f'{said} space ":" space {value}']
            else:
                members = [_member(self.name, said), _member(self.arguments, value)]
            if self.id:
                known = _member(self.id, self.id_rule)
                members = [known, *members] if self.id_first else [*members, known]
            between = ' space "," space '
            objects.append(out.rule(f"tool-{i}", f'"{{" space {between.join(members)} space "}}"'))
        one = out.rule("tool", " | ".join(objects))
        opening = literal(self.openings[0]) if self.openings else '""'
        closing = f" space {literal(self.closing)}" if self.closing else ""
        if self.openings and self.openings[0].endswith("["):
            return out.rule("calls", f"{opening} space {_list(one, several)}{closing}")
        if self.in_list:
            return out.rule("calls", f'{opening} space "[" space {_list(one, several)} space "]"{closing}')
        call = out.rule("call", f"{opening} space {one}{closing}")
        return out.rule("calls", f"{call} (space {call})*" if several and self.openings else call)

    def one(self, reader: Reader, sink: Sink) -> Step[None]:
        """One object."""
        name, call_id, early = "", "", ""
        begun = False
        depth = 0  # objects within the key "function"

        def begin() -> None:
            nonlocal begun
            sink.call(name, call_id)
            begun = True

        def member(key: str) -> Step[None]:
            nonlocal name, call_id, early, depth
            if not self.name:
                name = key
                begin()
                yield from json_text.value(reader, sink.arguments)
            elif key == self.name:
                name = yield from json_text.string(reader)
                if early or not self.id or call_id:
                    begin()
                    sink.arguments(early)
            elif key in (self.arguments, "parameters", "arguments"):
                if name and not begun:
                    begin()
                if begun:
                    yield from json_text.value(reader, sink.arguments)
                else:
                    parts: list[str] = []
                    yield from json_text.value(reader, parts.append)
                    early = "".join(parts)
            elif key == self.id:
                call_id = yield from json_text.string(reader)
                if begun:
                    sink.late_id(call_id)
            elif key == "function" and not depth and (yield from reader.space()) is not None and reader.text[:1] == "{":
                depth += 1
                yield from json_text.members(reader, member)
                depth -= 1
            else:
                yield from json_text.value(reader, lambda text: None)

        yield from json_text.members(reader, member)
        if name and not begun:
            begin()
            sink.arguments(early)


def _member(key: str, value: str) -> str:
    return f'{literal(json_text.dump(key))} space ":" space {value}'


def _list(one: str, several: bool) -> str:
    return f'{one} (space "," space {one})*' if several else one
