"""Calls written as Python: <|tool_call_start|>[name(key="value", other=[1, 2])]<|tool_call_end|>, as LFM2 does.

Owns that shape. Each argument is read to its end and becomes JSON; a list of JSON objects is read too.
"""

import ast
from dataclasses import dataclass

from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_calls import JsonCalls
from pyggml.chat.reply.json_text import dump
from pyggml.chat.reply.reader import Reader, Step


@dataclass(frozen=True)
class PythonCalls:
    """[opening] "[" name(key=value, ...), ... "]" [closing]."""

    openings: tuple[str, ...]
    closing: str
    ends_reasoning: bool = True

    def read(self, reader: Reader, opening: str, sink: Sink, tools: Tools) -> Step[None]:
        """The list after the opening marker."""
        yield from reader.space()
        yield from reader.take("[")
        yield from reader.space()
        if (yield from reader.more()) and reader.text[0] == "{":
            yield from JsonCalls(()).read(reader, "[", sink, tools)
        else:
            while (yield from python_call(reader, sink)):
                yield from reader.space()
                if not (yield from reader.take(",")):
                    break
                yield from reader.space()
            yield from reader.take("]")
        yield from reader.space()
        yield from reader.take(self.closing)


def python_call(reader: Reader, sink: Sink) -> Step[bool]:
    """name(key=value, ...); False where there is none."""
    name = yield from reader.word("([],<")
    if not name.strip() or not (yield from reader.take("(")):
        return False
    sink.call(name.strip())
    sink.arguments("{")
    first = True
    while True:
        yield from reader.space()
        if (yield from reader.take(")")):
            sink.arguments("}")
            return True
        key = yield from reader.word("=)")
        if not (yield from reader.take("=")):
            if not reader.ended:
                sink.arguments("}")
            return False
        text = yield from _expression(reader)
        if reader.text[:1] not in (",", ")"):  # cut off
            return False
        sink.arguments(("" if first else ", ") + f"{dump(key.strip())}: {literal(text)}")
        first = False
        yield from reader.take(",")


def literal(text: str) -> str:
    """A Python value as JSON; JSON's own words are read too, and other text is a string."""
    try:
        return dump(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    word = {"true": "true", "false": "false", "null": "null"}.get(text.strip())
    return word or dump(text.strip())


def _expression(reader: Reader) -> Step[str]:
    """All up to a comma or a closing bracket outside of quotes and brackets."""
    taken, depth, quote = "", 0, ""
    while (yield from reader.more()):
        char, reader.text = reader.text[0], reader.text[1:]
        if quote:
            taken += char
            if char == "\\" and (yield from reader.more()):
                taken += reader.text[0]
                reader.text = reader.text[1:]
            elif char == quote:
                quote = ""
            continue
        if depth == 0 and char in ",)":
            reader.text = char + reader.text
            break
        depth += (char in "([{") - (char in ")]}")
        quote = char if char in "\"'" else ""
        taken += char
    return taken
