"""gpt-oss: messages in channels, <|channel|>analysis<|message|>...<|end|><|start|>assistant to=functions.name<|channel|>...

Owns how such a reply is read: "analysis" is reasoning, a message to a function is a call, all other text is the answer.
"""

import re
from dataclasses import dataclass

from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step

ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")


@dataclass(frozen=True)
class Harmony:
    """`recipient`: a pattern for the function that a message's head addresses."""

    recipient: str = r"to=\s*(?:functions\.)?(?P<name>[^\s<]+)"

    def read(self, reader: Reader, sink: Sink, tools: Tools, reasoning: bool) -> Step[None]:
        """The whole reply. reasoning: whether it is told apart; else it is part of the text, with its markers."""
        while (yield from reader.more()):
            head: list[str] = []
            found = yield from reader.until(("<|message|>", *ENDS), head.append)
            if found != "<|message|>":
                if not found:
                    sink.content("".join(head))
                    return
                continue
            title = "".join(head)
            match = re.search(self.recipient, title)
            channel = re.search(r"<\|channel\|>\s*(\w+)", title)
            if match is not None and (tools or "functions." in title):
                yield from self._call(reader, sink, match["name"])
            elif channel is not None and channel[1] == "analysis":
                if reasoning:
                    yield from reader.until(ENDS, sink.reasoning)
                else:
                    sink.content(f"{title[channel.start() :]}<|message|>")
                    sink.content((yield from reader.until(ENDS, sink.content)))
            else:
                yield from reader.until(ENDS, sink.content)

    def _call(self, reader: Reader, sink: Sink, name: str) -> Step[None]:
        sink.call(name)
        yield from reader.trimmed(ENDS, sink.arguments)
