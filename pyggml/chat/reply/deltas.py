"""What a model's reply is made of: text, reasoning and calls of tools, whole and as it grows.

Owns the values that a parser of replies hands out.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Call:
    """A tool that the model wants called; `arguments` is JSON as the model wrote it, cut off if the reply was."""

    name: str
    arguments: str = ""
    id: str = ""


@dataclass
class Reply:
    """All that was said so far."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True)
class Delta:
    """What is new: text of the answer, of the reasoning, or of the call with index `call`.

    The first delta of a call has its name and id, and no other one has; its arguments come in pieces.
    """

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    id: str = ""
    name: str = ""
    arguments: str = ""


def new_id() -> str:
    """An id for a call to which the model gave none: 32 letters and digits, as llama-server's."""
    return secrets.token_hex(16)


class Sink:
    """Where parsers put what they find: it is added to `reply`, and waits as deltas to be taken."""

    def __init__(self, make_id: Callable[[], str] = new_id) -> None:
        self.reply = Reply()
        self._make_id = make_id
        self._deltas: list[Delta] = []

    def content(self, text: str) -> None:
        if text:
            self.reply.content += text
            self._deltas.append(Delta(content=text))

    def reasoning(self, text: str) -> None:
        if text:
            self.reply.reasoning += text
            self._deltas.append(Delta(reasoning=text))

    def call(self, name: str, call_id: str = "") -> None:
        """A call begins."""
        call_id = call_id or self._make_id()
        self.reply.calls.append(Call(name, "", call_id))
        self._deltas.append(Delta(call=len(self.reply.calls) - 1, id=call_id, name=name))

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        if text:
            self.reply.calls[-1].arguments += text
            self._deltas.append(Delta(call=len(self.reply.calls) - 1, arguments=text))

    def late_id(self, call_id: str) -> None:
        """The model named the last call's id after its arguments: the whole reply has it, the stream had another."""
        if call_id:
            self.reply.calls[-1].id = call_id

    def take(self) -> list[Delta]:
        """The deltas since the last time."""
        deltas, self._deltas = self._deltas, []
        return deltas
