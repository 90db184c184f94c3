"""Replies in which markers set reasoning and calls apart from the answer: what most models write.

Owns how such a reply is read as a whole.
"""

import re
from dataclasses import dataclass

from pyggml.chat.reply.calls import Calls, Tools
from pyggml.chat.reply.deltas import Sink
from pyggml.chat.reply.json_calls import JsonCalls
from pyggml.chat.reply.reader import SPACE, Reader, Step

_BARE = re.compile(r'\{\s*"(name|type|function)"\s*:')
_MAY_BE_BARE = re.compile(r'(\{\s*("(n(a(me?)?)?|t(y(pe?)?)?|f(u(n(c(t(i(on?)?)?)?)?)?)?)?("\s*)?)?)?')


@dataclass(frozen=True)
class Marked:
    """Reasoning, answer and calls, in any order.

    think    before and after reasoning; None where the model has none
    calls    how calls are written; None where they are not
    dropped  markers around the answer that say nothing more
    bare     a call may be a JSON object and nothing else, at the beginning of the answer (Llama 3)
    """

    think: tuple[str, str] | None = None
    calls: Calls | None = None
    dropped: tuple[str, ...] = ()
    bare: bool = False

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
