"""Gemma 4's calls: <|tool_call>call:name{key:<|"|>text<|"|>,other:[1,2]}<tool_call|>.

Owns that shape: JSON without quotes around keys, and with a token of its own around texts.
"""

from dataclasses import dataclass

from pyggml.chat.reply.calls import Tools, bare_value, escaped
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_text import dump
from pyggml.chat.reply.reader import Reader, Step

QUOTE = '<|"|>'


@dataclass(frozen=True)
class GemmaCalls:
    openings: tuple[str, ...] = ("<|tool_call>",)
    closing: str = "<tool_call|>"
    ends_reasoning: bool = True

    def read(self, reader: Reader, opening: str, sink: Sink, tools: Tools) -> Step[None]:
        """One call."""
        yield from reader.space()
        yield from reader.take("call:")
        name = yield from reader.word("{<")
        sink.call(name.strip())
        yield from _value(reader, sink)
        yield from reader.space()
        yield from reader.take(self.closing)


def _value(reader: Reader, sink: Sink) -> Step[None]:
    yield from reader.space()
    if (yield from reader.take(QUOTE)):
        sink.arguments('"')
        if (yield from reader.until((QUOTE,), lambda text: sink.arguments(escaped(text)))):
            sink.arguments('"')
        return
    opening = yield from reader.take("{", "[")
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
        yield from _value(reader, sink)
        first = False
        yield from reader.space()
        yield from reader.take(",")


def _key(reader: Reader) -> Step[str]:
    if (yield from reader.take(QUOTE)):
        parts: list[str] = []
        yield from reader.until((QUOTE,), parts.append)
        return "".join(parts)
    return (yield from reader.word(":}")).strip().strip('"')
