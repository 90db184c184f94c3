"""Functionary 3.2: each part of a reply has a recipient, >>>all and text for the user, >>>name and JSON for a tool.

Owns how such a reply is read. The prompt ends with the first ">>>".
"""

from dataclasses import dataclass

from pyggml.chat.reply import json_text
from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step
from pyggml.grammar import ComposedGrammar, Trigger
from pyggml.grammar.composed import literal

MARK = ">>>"


@dataclass(frozen=True)
class Recipients:
    def read(self, reader: Reader, sink: Sink, tools: Tools, reasoning: bool) -> Step[None]:
        """The whole reply."""
        yield from reader.take(MARK)
        while (yield from reader.more()):
            name = (yield from reader.word("\n")).strip()
            yield from reader.take("\n")
            if name == "all":
                yield from reader.until((MARK,) if tools else (), sink.content)
            elif name in tools.schemas or name == "python":
                sink.call(name)
                if (yield from reader.more()) and reader.text.lstrip()[:1] == "{":
                    yield from json_text.value(reader, sink.arguments)
                else:
                    parts: list[str] = []
                    yield from reader.until((MARK,), parts.append)
                    sink.arguments(json_text.dump({"code": "".join(parts)}))
                    continue
                yield from reader.space()
                yield from reader.take(MARK)
            else:  # no recipient: text
                sink.content(name + ("\n" if reader.text else ""))
                yield from reader.until((MARK,) if tools else (), sink.content)

    def begun(self, generation_prompt: str) -> str:
        """The first mark."""
        return MARK if generation_prompt.endswith(MARK) else ""

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> str:
        """Text for the user if the model likes, and calls."""
        call = self._call(out, tools)
        calls = f'{call} ("{MARK}" {call})*' if several else call
        return f'("all\\n" {out.until(MARK)} "{MARK}")? {calls}'

    def trigger(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> tuple[str, Trigger] | None:
        """A mark with a tool's name after it."""
        call = self._call(out, tools)
        calls = f'("{MARK}" {call})+' if several else f'"{MARK}" {call}'
        return calls, Trigger(tuple(f"{MARK}{name}\n" for name in tools.schemas), written=begun)

    def _call(self, out: ComposedGrammar, tools: Tools) -> str:
        ways = []
        for i, (name, schema) in enumerate(tools.schemas.items()):
            body = out.schema(f"tool-{i}-arguments", schema)
            ways.append(out.rule(f"tool-{i}", f"{literal(name)} {literal(chr(10))} {body}"))
        return out.rule("tool", " | ".join(ways))

    def going_on(self, reasoning: str, content: str, opened: str) -> str:
        """How a reply begins that has said so much."""
        return f"all\n{content}"
