"""Calls whose arguments are tags with bare text between: <function=name><parameter=key>value</parameter></function>.

Owns the shape that these formats share with other markers. A string is passed on while it is written; what may be other
JSON is read to its end first.
"""

from dataclasses import dataclass

from pyggml.chat.reply.calls import Tools, bare_value, escaped, text_kind
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_text import dump
from pyggml.chat.reply.reader import Reader, Step


@dataclass(frozen=True)
class TaggedCalls:
    """[section] (call name named (key keyed value valued)* close)+ [section_end].

    call     what stands before a name; "" where the section's marker does
    named    what ends the name, the first of them
    key, keyed, valued  before and after an argument's name, and after its value
    between  after `keyed` and white space, before the value: GLM's <arg_value>
    newlines one line break on each side of a value belongs to the tags
    typed    endings of a name that say whether the value is a string, in place of the tool's schema
    """

    section: tuple[str, ...]
    section_end: str
    call: str
    named: tuple[str, ...]
    key: str
    keyed: tuple[str, ...]
    valued: tuple[str, ...]
    close: str = ""
    between: str = ""
    newlines: bool = True
    typed: tuple[tuple[str, str], ...] = ()
    loose: bool = False  # a call may stand without a section
    ends_reasoning: bool = True

    @property
    def openings(self) -> tuple[str, ...]:
        return (*self.section, self.call) if self.call and (self.loose or not self.section) else self.section

    def read(self, reader: Reader, opening: str, sink: Sink, tools: Tools) -> Step[None]:
        """One call, or all of a section."""
        begun = opening == self.call
        while True:
            if not begun:
                yield from reader.space()
                if self.section_end and (yield from reader.take(self.section_end)):
                    return
                if self.call and not (yield from reader.take(self.call)):
                    return
            begun = False
            ended = yield from self._one(reader, sink, tools)
            yield from reader.space()
            if ended or not self.call or not (yield from reader.more()):
                return
            if opening == self.call:
                yield from reader.take(self.section_end or "\0")
                return

    def _one(self, reader: Reader, sink: Sink, tools: Tools) -> Step[bool]:
        """From the name on; True when the section ended with it."""
        ends = [end for end in (self.close, self.section_end) if end]
        parts: list[str] = []
        found = yield from reader.until((*self.named, self.key, *ends), parts.append)
        name = "".join(parts).strip()
        if not found:
            return True
        sink.call(name)
        sink.arguments("{")
        first = True
        if found == self.key:
            yield from self._argument(reader, sink, tools, name, first)
            first = False
        if found not in ends:
            while True:
                yield from reader.space()
                taken = yield from reader.take(self.key, *ends)
                if taken != self.key:
                    found = taken
                    break
                yield from self._argument(reader, sink, tools, name, first)
                first = False
        if found or not reader.ended:
            sink.arguments("}")
        return bool(found) and found == self.section_end

    def _argument(self, reader: Reader, sink: Sink, tools: Tools, name: str, first: bool) -> Step[None]:
        parts: list[str] = []
        found = yield from reader.until(self.keyed, parts.append)
        if not found:
            return
        key = "".join(parts).strip()
        if self.between:
            yield from reader.space()
            yield from reader.take(self.between)
        kind = dict(self.typed).get(found) or text_kind(tools.argument(name, key))
        sink.arguments(("" if first else ", ") + dump(key) + ": ")
        if self.newlines:
            yield from reader.take("\n")
        ends = [*self.valued, *(["\n" + end for end in self.valued] if self.newlines else [])]
        if kind == "string":
            sink.arguments('"')
            found = yield from reader.until(ends, lambda text: sink.arguments(escaped(text)))
            if found:
                sink.arguments('"')
            return
        value: list[str] = []
        if (yield from reader.until(ends, value.append)):
            sink.arguments(bare_value("".join(value), kind))
