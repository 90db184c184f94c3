"""Muse Glimmer: messages with a recipient, " to=self<|message|>...<|eom|><|start|>assistant to=user<|message|>...<|eot|>".

Owns how such a reply is read: what the model tells itself is reasoning, what it tells the user is the answer, and a message
to a tool holds a call in tags. The prompt ends with "<|start|>assistant". After common/parsers/muse-glimmer.cpp of llama.cpp.
"""

import re
from dataclasses import dataclass

from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.reader import Reader, Step
from pyggml.chat.reply.tagged_calls import TaggedCalls
from pyggml.grammar import ComposedGrammar, Trigger
from pyggml.grammar.composed import literal

NEXT = "<|eom|><|start|>assistant"
SELF = " to=self<|message|>"
USER = " to=user<|message|>"
_RECIPIENT = re.compile(r"to=\s*([^\s<]+)")


@dataclass(frozen=True)
class Addressed:
    """calls: how a call is written in a message to a tool; marks: the form's control tokens."""

    calls: TaggedCalls
    message: str = "<|message|>"
    ends: tuple[str, ...] = ("<|eom|>", "<|eot|>", "<|start|>")

    def read(self, reader: Reader, sink: Sink, tools: Tools, reasoning: bool) -> Step[None]:
        """The whole reply. reasoning: whether it is told apart; else it is part of the text, with its markers."""
        while (yield from reader.more()):
            head: list[str] = []
            found = yield from reader.until((self.message, *self.ends), head.append)
            title = "".join(head)
            if not found:
                sink.content(title)
                return
            if found != self.message:
                continue
            match = _RECIPIENT.search(title)
            recipient = match[1] if match is not None else "user"
            if recipient == "self" and reasoning:
                yield from reader.until(self.ends, sink.reasoning)
            elif recipient == "self":
                sink.content(f"{title}{self.message}")
                sink.content((yield from reader.until(self.ends, sink.content)))
            else:
                if recipient != "user" and tools:
                    yield from reader.space()
                    if opening := (yield from reader.take(*self.calls.openings)):
                        yield from self.calls.read(reader, opening, sink, tools)
                        yield from reader.space()
                yield from reader.until(self.ends, sink.content)

    def begun(self, generation_prompt: str) -> str:
        """Nothing: the recipient comes with the reply."""
        return ""

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> str:
        """Reasoning in messages to itself, and messages to tools."""
        until = f"{out.until('<|eom|>')} {literal(NEXT)}"
        rest = f"{until} " if self.message in begun else ""  # of a message that the prompt has begun
        return f"{rest}({literal(SELF)} {until})* {self._messages(out, tools, several)}"

    def trigger(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> tuple[str, Trigger] | None:
        """From the first recipient on: no other one than itself, the user and the tools."""
        text, after = out.until("<|eom|>"), literal(NEXT)
        calls = self._messages(out, tools, several)
        turn = f"({literal(SELF)} {text} {after})* ({calls} | {literal(USER)} {text} ({after} {calls})?)"
        start = "<|start|>assistant"
        return f"({literal(start)})? {turn}", Trigger((f"{start} to=",), (" to=",), written=begun)

    def _messages(self, out: ComposedGrammar, tools: Tools, several: bool) -> str:
        ways = []
        for i, name in enumerate(tools.schemas):
            call = self.calls.grammar(out, tools.only(name), False)
            ways.append(out.rule(f"message-{i}", f"{literal(f' to={name}{self.message}')} {call}"))
        one = out.rule("message", " | ".join(ways))
        more = f" ({literal(NEXT)} {one})*" if several else ""
        return f"{one}{more} ({literal('<|eot|>')} | {literal('<|eom|>')})?"

    def going_on(self, reasoning: str, content: str, opened: str) -> str:
        """How a reply begins that has said so much."""
        begun = f"{SELF}{reasoning}" if reasoning else ""
        if content or not reasoning:
            begun += f"{NEXT if begun else ''}{USER}{content}"
        return begun
