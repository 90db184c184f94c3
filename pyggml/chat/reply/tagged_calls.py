"""Calls whose arguments are tags with bare text between: <function=name><parameter=key>value</parameter></function>.

Owns the shape that these formats share with other markers. A string is passed on while it is written; what may be other
JSON is read to its end first.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

from pyggml.chat.reply.calls import Tools, bare_value, escaped, text_kind
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_calls import JsonCalls
from pyggml.chat.reply.json_text import dump
from pyggml.chat.reply.reader import Reader, Step, ignore
from pyggml.grammar.composed import ComposedGrammar, literal

_FEW = 3  # required arguments whose orders are all taken


@dataclass(frozen=True)
class TaggedCalls:
    """[section] (call name named (key keyed value valued)* close)+ [section_end].

    call     what stands before a name; "" where the section's marker does
    named    what ends the name, the first of them
    key, keyed, valued  before and after an argument's name, and after its value
    between  before the value, at some distance from `keyed`: GLM's <arg_value>
    after_name  as `between`, for the tool's name: what ends its tag, after attributes
    rules    what stands before `between`, and before `after_name` (GBNF)
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
    after_name: str = ""
    rules: tuple[str, str] = ("space", "space")
    loose: bool = False  # a call may stand without a section
    ends_reasoning: bool = False

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
            yield from reader.space()
            if (yield from reader.more()) and reader.text[0] == "{":  # as Hermes would; models mix them up
                yield from JsonCalls(()).one(reader, sink)
                yield from reader.space()
                taken = yield from reader.take(*(end for end in (self.close, self.section_end) if end))
                ended = taken == self.section_end
            else:
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
        if self.after_name and found == self.named[0]:
            yield from reader.until((self.after_name,), ignore)
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
            yield from reader.until((self.between,), ignore)
        kind = dict(self.typed).get(found) or text_kind(tools.argument(name, key))
        sink.arguments(("" if first else ", ") + dump(key) + ": ")
        broken = self.newlines and bool((yield from reader.take("\n")))
        ends = [*self.valued, *(["\n" + end for end in self.valued] if broken else [])]
        if kind == "string":
            sink.arguments('"')
            found = yield from reader.until(ends, lambda text: sink.arguments(escaped(text)))
            if found:
                sink.arguments('"')
            return
        value: list[str] = []
        if (yield from reader.until(ends, value.append)):
            sink.arguments(bare_value("".join(value), kind))

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool) -> str:
        """A section of calls, or calls without one. Required arguments come first, in any order if they are few."""
        ways = []
        for i, name in enumerate(tools.schemas):
            needed: list[str] = []
            others: list[str] = []
            for key, schema, required in tools.arguments(name):
                (needed if required else others).append(self._pair(out, tools, i, name, key, schema))
            named = "space" if self.named[0].isspace() else literal(self.named[0])
            tail = f"{self.rules[1]} {literal(self.after_name)} " if self.after_name else ""
            body = f"{literal(self.call + name)} {named} {tail}space "
            orders = permutations(needed) if len(needed) <= _FEW else [needed]
            if needed:
                body += "(" + " | ".join(" space ".join(order) for order in orders) + ") space "
            if others:
                other = out.rule(f"tool-{i}-other", " | ".join(others))
                body += f"({other} space)* "
            ways.append(out.rule(f"tool-{i}", body + (literal(self.close) if self.close else "")))
        one = out.rule("tool", " | ".join(ways))
        if not self.section:
            return out.rule("calls", f"{one} (space {one})*" if several else one)
        many = several and bool(self.call) and not self.loose
        inside = f"{one} (space {one})*" if many else one
        start, end = f"{literal(self.section[0])} space", f"space {literal(self.section_end)}"
        call = out.rule("call", f"({start})? {inside} ({end})?" if self.loose else f"{start} {inside} {end}")
        return out.rule("calls", f"{call} (space {call})*" if several else call)

    def _pair(self, out: ComposedGrammar, tools: Tools, i: int, name: str, key: str, schema: Any) -> str:
        kind = text_kind(schema)
        value = tools.value_grammar(out, i, name, key) if kind == "other" else out.until(self.valued[0])
        if self.newlines and kind == "other":
            value = f'"\\n"? {value} "\\n"?'
        keyed = next((end for end, of in self.typed if of == kind), self.keyed[0])
        between = f" {self.rules[0]} {literal(self.between)}" if self.between else ""
        return out.rule(
            f"tool-{i}-{key}-pair", f"{literal(self.key + key + keyed)}{between} {value} {literal(self.valued[0])}"
        )
