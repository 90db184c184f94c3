"""gpt-oss: messages in channels, <|channel|>analysis<|message|>...<|end|><|start|>assistant to=functions.name<|channel|>...

Owns how such a reply is read: "analysis" is reasoning, a message to a function is a call, all other text is the answer.
"""

import re
from dataclasses import dataclass

from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step, ignore
from pyggml.grammar import ComposedGrammar, Trigger
from pyggml.grammar.composed import literal

ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")


@dataclass(frozen=True)
class Harmony:
    """recipient: a pattern for the function that a message's head addresses; marks: the form's control tokens; think: before and
    after reasoning."""

    marks: tuple[str, ...] = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")

    think: tuple[str, str] = ("<|channel|>analysis<|message|>", "<|end|>")
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
            channel = re.search(r"(?s:.*)<\|channel\|>\s*(\w+)", title)
            if match is not None and match["name"] not in ("assistant", "user", "all"):
                if tools:
                    sink.call(match["name"])
                yield from reader.trimmed(ENDS, sink.arguments if tools else ignore)
            elif channel is not None and channel[1] == "analysis":
                if reasoning:
                    yield from reader.until(ENDS, sink.reasoning)
                else:
                    sink.content(f"{title[title.rfind('<|channel|>') :]}<|message|>")
                    sink.content((yield from reader.until(ENDS, sink.content)))
            else:
                yield from reader.until(ENDS, sink.content)

    def begun(self, generation_prompt: str) -> str:
        """Nothing: the channel comes with the reply."""
        return ""

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> str:
        """Reasoning in its channel, and a message to a function."""
        think = f'"<|channel|>analysis<|message|>" {out.until("<|end|>")} "<|end|><|start|>assistant"'
        call = self._message(out, tools)
        before = f'"<|channel|>commentary " {call} | " " {call}'
        return f"({think})? ({before})"

    def trigger(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> tuple[str, Trigger] | None:
        """A message's head that addresses a function."""
        return self._message(out, tools), Trigger(("to=functions.",), silent=("<|message|>", "<|end|>"))

    def _message(self, out: ComposedGrammar, tools: Tools) -> str:
        ways = []
        for i, (name, schema) in enumerate(tools.schemas.items()):
            channel = '(" "? "<|channel|>" " "? ("commentary" | "analysis"))?'
            head = f"{literal('to=functions.' + name)} {channel}"
            body = out.schema(f"tool-{i}-arguments", schema)
            ways.append(
                out.rule(f"tool-{i}", f'{head} (" "? "<|constrain|>"? " "{{0,2}} "json")? "<|message|>" space {body}')
            )
        return out.rule("tool", " | ".join(ways))

    def going_on(self, reasoning: str, content: str, opened: str) -> str:
        """How a reply begins that has said so much."""
        begun = f"<|channel|>analysis<|message|>{reasoning}" if reasoning else ""
        if content or not reasoning:
            begun += ("<|end|><|start|>assistant" if begun else "") + f"<|channel|>final<|message|>{content}"
        return begun
