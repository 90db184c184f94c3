"""What a model has written, in its parts: what it thinks, what it says, and the tools that it calls.

Owns these parts and how a longer answer differs from a shorter one, which is what a stream sends.
"""

from collections.abc import Callable
from typing import NamedTuple


class Call(NamedTuple):
    """A tool that is called. `arguments`: JSON, as far as it is written."""

    name: str
    arguments: str


class Message(NamedTuple):
    """The parts of an answer."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


class Delta(NamedTuple):
    """What is new. `call`: the number of the call that `name` (at its beginning) or `arguments` belong to."""

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    name: str = ""
    arguments: str = ""


Parse = Callable[[str, bool], Message]
"""(text, whether it is all) -> its parts. Of a text that goes on, what may turn out to be something else is left out: each
part begins as it did before."""


def deltas(before: Message, after: Message) -> list[Delta]:
    """What `after` adds to `before`."""
    found = []
    if more := after.reasoning[len(before.reasoning) :]:
        found.append(Delta(reasoning=more))
    if more := after.content[len(before.content) :]:
        found.append(Delta(content=more))
    for i, call in enumerate(after.calls):
        known = before.calls[i] if i < len(before.calls) else None
        if known is None:
            found.append(Delta(call=i, name=call.name))
        if more := call.arguments[len(known.arguments) if known else 0 :]:
            found.append(Delta(call=i, arguments=more))
    return found


class AnswerParser:
    """Text piece by piece in, what is new of its parts out."""

    def __init__(self, parse: Parse) -> None:
        self._parse = parse
        self.text = ""
        self.message = Message()

    def push(self, text: str, final: bool = False) -> list[Delta]:
        """`final`: nothing comes after it."""
        self.text += text
        before, self.message = self.message, self._parse(self.text, final)
        return deltas(before, self.message)


def held_back(text: str, markers: tuple[str, ...], final: bool) -> str:
    """`text` without an end that one of the markers begins with, unless it is all."""
    if final:
        return text
    n = max(
        (n for marker in markers for n in range(1, min(len(marker), len(text) + 1)) if text.endswith(marker[:n])),
        default=0,
    )
    return text[: len(text) - n]


def plain(text: str, final: bool) -> Message:
    """All of it is said."""
    return Message(text)
