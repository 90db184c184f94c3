"""Replies in which markers set reasoning and calls apart from the answer: what most models write.

Owns how such a reply is read as a whole.
"""

import re
from dataclasses import dataclass

from pyggml.chat.reply.calls import Calls, Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_calls import JsonCalls
from pyggml.chat.reply.reader import SPACE, Reader, Step
from pyggml.grammar import ComposedGrammar, Trigger
from pyggml.grammar.composed import literal

_BARE = re.compile(r'\{\s*"(name|type|function)"\s*:')
_MAY_BE_BARE = re.compile(r'(\{\s*("(n(a(me?)?)?|t(y(pe?)?)?|f(u(n(c(t(i(on?)?)?)?)?)?)?)?("\s*)?)?)?')


@dataclass(frozen=True)
class Marked:
    """Reasoning, answer and calls, in any order.

    think    before and after reasoning; None where the model has none
    calls    how calls are written; None where they are not
    dropped  markers around the answer that say nothing more
    bare     a call may be a JSON object and nothing else, at the beginning of the answer (Llama 3)
    tight    no line breaks stand around reasoning
    again    what the message that follows reasoning begins with, where reasoning is a message of its own
    answer   what stands before an answer
    """

    think: tuple[str, str] | None = None
    calls: Calls | None = None
    dropped: tuple[str, ...] = ()
    bare: bool = False
    tight: bool = False
    again: str = ""
    answer: str = ""

    def read(self, reader: Reader, sink: Sink, tools: Tools, reasoning: bool) -> Step[None]:
        """The whole reply. reasoning: whether it is told apart; else it is part of the text, with its markers."""
        openings = self.calls.openings if self.calls is not None and tools else ()
        starts = (self.think[0],) if self.think is not None and reasoning else ()
        ends = (self.think[1],) if self.think is not None and reasoning else ()
        dropped = [mark for mark in self.dropped if reasoning or self.think is None or mark not in self.think[0]]
        trim = False  # after reasoning and calls white space only parts them
        while True:
            if self.bare and tools and (yield from self._bare(reader)):
                yield from JsonCalls(()).read(reader, "", sink, tools)
                trim = True
            gap = _Gap(sink, trim)
            found = yield from reader.until((*starts, *openings, *dropped, *ends), gap.content)
            if found in openings:
                assert self.calls is not None
                yield from self.calls.read(reader, found, sink, tools)
            elif not found:
                gap.end()
                return
            elif found in starts:
                assert self.think is not None
                inner = openings if self.calls is not None and self.calls.ends_reasoning else ()
                found = yield from reader.trimmed((self.think[1], *inner), sink.reasoning)
                if found in inner and found != self.think[1]:
                    assert self.calls is not None
                    yield from self.calls.read(reader, found, sink, tools)
            trim = True

    def begun(self, generation_prompt: str) -> str:
        """Reasoning that the template opened, and maybe closed."""
        at = generation_prompt.rfind(self.think[0]) if self.think is not None else -1
        return generation_prompt[at:] if at >= 0 else ""

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> str:
        """Reasoning if the model has any, and calls."""
        calls = self._calls.grammar(out, tools, several) + self._rest
        if self.think is None or self.think[1] in begun:
            return f"space {calls}"
        start, end = self.think
        rest = f"{literal(end)} space" + (f" ({literal(self.again)} space)?" if self.again else "")
        if begun:
            return f"{out.until(end)} {rest} {calls}"
        return f"space ({literal(start)} {out.until(end)} {rest})? {calls}"

    def trigger(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> tuple[str, Trigger] | None:
        """Calls from their opening marker on."""
        rule = self._calls.grammar(out, tools, several)
        starts = ('{"name":', '{"type":', '{"function":') if self.bare else ()
        if self.bare:
            rule = f"{JsonCalls((), arguments=self._bare_arguments).grammar(out, tools, False)} | {rule}"
        silent = None if self._calls.ends_reasoning else self.think
        return f"({rule}){self._rest}", Trigger(self._calls.openings, starts, silent=silent, written=begun)

    @property
    def _rest(self) -> str:
        """What may come after calls, as a rule."""
        return f" space ({' | '.join(map(literal, self.dropped))})*" if self.dropped else " space"

    @property
    def _calls(self) -> Calls:
        return self.calls if self.calls is not None else JsonCalls(())

    @property
    def _bare_arguments(self) -> str:
        return self.calls.arguments if isinstance(self.calls, JsonCalls) else "arguments"

    def going_on(self, reasoning: str, content: str, opened: str) -> str:
        """How a reply goes on that has said so much, where the prompt has `opened` reasoning."""
        said = f"{self.answer}{content}" if content else ""
        if self.think is None or not (reasoning or opened):
            return said
        start, end = self.think
        if end in opened:
            return said
        line, gap = ("", "") if self.tight else ("\n", "\n\n")
        begun = reasoning if start in opened else f"{start}{line}{reasoning}"
        return f"{begun}{line}{end}{gap}{self.again}{said}" if content or not reasoning else begun

    def _bare(self, reader: Reader) -> Step[bool]:
        """Whether a call stands here as a bare object."""
        while True:
            text = reader.text.lstrip(SPACE)
            if _BARE.match(text):
                reader.text = text
                return True
            if reader.ended or not _MAY_BE_BARE.fullmatch(text):
                return False
            yield


class _Gap:
    """Text of the answer: white space at its end is held back until it is known that no marker follows."""

    def __init__(self, sink: Sink, trim: bool) -> None:
        self._sink, self._trim = sink, trim
        self._spaces = ""

    def content(self, text: str) -> None:
        text = self._spaces + text
        if self._trim:
            text = text.lstrip(SPACE)
        bare = text.rstrip(SPACE)
        self._spaces = text[len(bare) :]
        if bare:
            self._trim = False
        self._sink.content(bare)

    def end(self) -> None:
        """No marker follows."""
        self._sink.content(self._spaces)
