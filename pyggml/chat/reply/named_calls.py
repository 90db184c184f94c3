"""Calls whose name stands before their JSON: [TOOL_CALLS]name[ARGS]{...}, <function=name>{...}</function> and the like.

Owns the shape that these formats share with other markers.
"""

import re
from dataclasses import dataclass

from pyggml.chat.reply import json_text
from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step
from pyggml.grammar.composed import ComposedGrammar, literal


@dataclass(frozen=True)
class NamedCalls:
    """[section] (call name named {arguments} [close])+ [section_end].

    id_rule  a rule (GBNF) for an id between `call` and `prefix`; "": there is none
    prefix, suffix  around the name: a text before it, a rule (GBNF) after it
    header   a pattern over what stands between `call` and `named`, with groups "name" and maybe "id"
    """

    call: str
    named: tuple[str, ...]
    close: tuple[str, ...] = ()
    section: tuple[str, ...] = ()
    section_end: str = ""
    id_rule: str = ""
    prefix: str = ""
    suffix: str = ""
    header: str = r"\s*(?P<name>.*?)\s*"
    ends_reasoning: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        return (*self.section, self.call)

    def read(self, reader: Reader, opening: str, sink: Sink, tools: Tools) -> Step[None]:
        """One call, or all of a section."""
        inside = opening == self.call
        while True:
            if not inside:
                yield from reader.space()
                if self.section_end and (yield from reader.take(self.section_end)):
                    return
                if not (yield from reader.take(self.call)):
                    return
            inside = False
            parts: list[str] = []
            found = yield from reader.until(self.named, parts.append)
            if not found:
                return
            header = "".join(parts)
            match = re.fullmatch(self.header, header, re.DOTALL)
            groups = match.groupdict() if match else {"name": header.strip()}
            sink.call(groups["name"], groups.get("id") or "")
            yield from json_text.value(reader, sink.arguments)
            yield from reader.space()
            if self.close and (yield from reader.take(*self.close)):
                yield from reader.space()
            if opening == self.call and not self.section:
                return

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool) -> str:
        """A section of calls, or calls without one."""
        ways = []
        for i, (name, schema) in enumerate(tools.schemas.items()):
            begin = f"{literal(self.call)} {self.id_rule} {literal(self.prefix + name)}"
            begin = begin if self.id_rule else literal(self.call + self.prefix + name)
            head = f"{begin} {self.suffix} {literal(self.named[0])}"
            close = f" space {literal(self.close[0])}" if self.close else ""
            ways.append(out.rule(f"tool-{i}", f"{head} {out.schema(f'tool-{i}-arguments', schema)}{close}"))
        one = out.rule("tool", " | ".join(ways))
        calls = f"{one} (space {one})*" if several else one
        if self.section:
            calls = f"({literal(self.section[0])} space)? {calls} (space {literal(self.section_end)})?"
        return out.rule("calls", calls)
