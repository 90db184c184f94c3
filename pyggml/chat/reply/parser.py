"""A reply as it arrives: pieces of text in, deltas out.

Owns `ReplyParser`, which drives a format's reader.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.deltas import Delta, Reply, Sink, new_id
from pyggml.chat.reply.reader import Reader, Step
from pyggml.grammar import ComposedGrammar, Trigger


class Form(Protocol):
    """How a model's replies are written: marked.py, harmony.py, recipients.py."""

    def read(self, reader: Reader, sink: Sink, tools: Tools, reasoning: bool) -> Step[None]:
        """Read a whole reply."""

    def begun(self, generation_prompt: str) -> str:
        """What of the prompt's end belongs to the reply: reasoning that the template opened."""

    def grammar(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> str:
        """The rule of a reply that calls: reasoning as the model likes, then one call or several."""

    def trigger(self, out: ComposedGrammar, tools: Tools, several: bool, begun: str) -> tuple[str, Trigger] | None:
        """The rule of calls amid free text, and what begins them; None where the form has no calls."""

    def going_on(self, reasoning: str, content: str, opened: str) -> str:
        """The text that a reply begins with which has said so much; `opened`: what the prompt has of it already."""


class ReplyParser:
    """>>> parser = ReplyParser(form, tools=tools)
    >>> for piece in pieces:
    ...     for delta in parser.feed(piece): ...
    >>> parser.finish()              # the last deltas; parser.reply is the whole

    Text that may become a marker is held back until more is there. Nothing that a model writes is an error: what fits no
    format is text of the answer.
    """

    def __init__(
        self,
        form: Form,
        tools: Iterable[Mapping[str, Any]] = (),
        reasoning: bool = True,
        opened: str = "",
        make_id: Callable[[], str] = new_id,
    ) -> None:
        """tools: those that may be called (OpenAI's form); without any, calls stay text of the answer.

        reasoning  False: reasoning stays text of the answer, with its markers
        opened     the end of the prompt, where that begins the reply already ("<think>")
        """
        self._sink = Sink(make_id)
        self._reader = Reader()
        self._step = form.read(self._reader, self._sink, Tools(tools), reasoning)
        self._done = False
        if opened:
            self.feed(opened)

    @property
    def reply(self) -> Reply:
        """What was said so far."""
        return self._sink.reply

    def feed(self, text: str) -> list[Delta]:
        """More of the reply."""
        self._reader.text += text
        return self._advance()

    def finish(self) -> list[Delta]:
        """The reply has ended, or was cut off."""
        self._reader.ended = True
        return self._advance()

    def _advance(self) -> list[Delta]:
        if not self._done:
            try:
                next(self._step)
            except StopIteration:
                self._done = True
        return self._sink.take()
