"""Calls written as Python: <|tool_call_start|>[name(key="value", other=[1, 2])]<|tool_call_end|>, as LFM2 does.

Owns that shape. Each argument is read to its end and becomes JSON; a list of JSON objects is read too.
"""

import ast
import re
from dataclasses import dataclass

from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_calls import JsonCalls
from pyggml.chat.reply.json_text import dump
from pyggml.chat.reply.reader import Reader, Step
from pyggml.grammar.composed import ComposedGrammar
from pyggml.grammar.composed import literal as quoted

_AS_PYTHON = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\w+""", re.DOTALL)
_WORDS = {"true": "True", "false": "False", "null": "None"}


@dataclass(frozen=True)
class PythonCalls:
    """[opening] "[" name(key=value, ...), ... "]" [closing]."""

    openings: tuple[str, ...]
    closing: str
    ends_reasoning: bool = False

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

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool) -> str:
        """The list between the markers; values are JSON, and may have Python's words for true, false and null."""
        ways = []
        for i, name in enumerate(tools.schemas):
            needed: list[str] = []
            others: list[str] = []
            for key, _, required in tools.arguments(name):
                value = tools.value_grammar(out, i, name, key)
                pair = out.rule(f"tool-{i}-{key}-pair", f'{quoted(key)} "=" {value}')
                (needed if required else others).append(pair)
            other = out.rule(f"tool-{i}-other", " | ".join(others)) if others else ""
            inside = ' "," space '.join(needed)
            if other and needed:
                inside += f' ("," space {other})*'
            elif other:
                inside = f'({other} ("," space {other})*)?'
            ways.append(out.rule(f"tool-{i}", f'{quoted(name)} "(" {inside} ")"'))
        out.instead("boolean", '("true" | "false" | "True" | "False")')
        out.instead("null", '("null" | "None")')
        one = out.rule("tool", " | ".join(ways))
        calls = f'{one} ("," space {one})*' if several else one
        return out.rule("calls", f'{quoted(self.openings[0])} "[" {calls} "]" {quoted(self.closing)}')


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
    text = text.strip()
    try:
        return dump(ast.literal_eval(_AS_PYTHON.sub(lambda m: _WORDS.get(m[0], m[0]), text)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return dump(text)


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
