"""Functionary 3.2: each part of a reply has a recipient, >>>all and text for the user, >>>name and JSON for a tool.

Owns how such a reply is read. The prompt ends with the first ">>>".
"""

from dataclasses import dataclass

from pyggml.chat.reply import json_text
from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step

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
