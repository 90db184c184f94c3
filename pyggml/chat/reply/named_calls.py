"""Calls whose name stands before their JSON: [TOOL_CALLS]name[ARGS]{...}, <function=name>{...}</function> and the like.

Owns the shape that these formats share with other markers.
"""

import re
from dataclasses import dataclass

from pyggml.chat.reply import json_text
from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step


@dataclass(frozen=True)
class NamedCalls:
    """[section] (call name named {arguments} [close])+ [section_end].

    header   a pattern over what stands between `call` and `named`, with groups "name" and maybe "id"
    written  that text of a call, for grammars: {name}, and {number} for any number
    """

    call: str
    named: tuple[str, ...]
    close: tuple[str, ...] = ()
    section: tuple[str, ...] = ()
    section_end: str = ""
    header: str = r"\s*(?P<name>.*?)\s*"
    ends_reasoning: bool = True
    written: str = "{name}"

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
