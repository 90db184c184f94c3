"""Reading text that arrives in pieces: what could still become a marker is held back until more of it is there.

Owns the buffer and the steps that parsers are made of. Each step is a generator that yields when it needs more text;
`Reader.ended` says that none will come.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Step = Generator[None, None, T]
Emit = Callable[[str], None]
SPACE = " \t\r\n"


def ignore(text: str) -> None:
    """For text that is read and dropped."""


class Reader:
    """The text that no step has taken yet."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False

    def until(self, markers: Sequence[str], emit: Emit) -> Step[str]:
        """Emit all before the first of these markers, and take it; "" at the end of the text.

        Of markers that begin at one place the longest is taken.
        """
        while True:
            place, found = _first(self.text, markers)
            rest = self.text if found is None else self.text[:place]
            held = 0 if self.ended else _held(self.text, markers)
            if found is not None and len(self.text) - held > place:  # nothing longer begins there, or before
                emit(rest)
                self.text = self.text[place + len(found) :]
                return found
            if found is None or len(self.text) - held < place:
                keep = len(self.text) - held
                emit(self.text[:keep])
                self.text = self.text[keep:]
            else:  # a longer marker may begin where this one does
                emit(rest)
                self.text = self.text[place:]
            if self.ended:
                return ""
            yield

    def trimmed(self, markers: Sequence[str], emit: Emit) -> Step[str]:
        """As `until`, without white space at the beginning and before the marker or the end."""
        begun, spaces = False, ""

        def add(text: str) -> None:
            nonlocal begun, spaces
            text = spaces + text if begun else text.lstrip(SPACE)
            bare = text.rstrip(SPACE)
            spaces = text[len(bare) :]
            begun = begun or bool(bare)
            emit(bare)

        return (yield from self.until(markers, add))

    def take(self, *literals: str) -> Step[str]:
        """Take the longest of these if the text goes on with one; "" if not."""
        while True:
            hits = [literal for literal in literals if self.text.startswith(literal)]
            longer = [x for x in literals if len(x) > len(self.text) and x.startswith(self.text)]
            if hits and (self.ended or not longer):
                best = max(hits, key=len)
                self.text = self.text[len(best) :]
                return best
            if self.ended or not longer:
                return ""
            yield

    def space(self) -> Step[str]:
        """Take white space."""
        taken = ""
        while True:
            bare = self.text.lstrip(SPACE)
            taken += self.text[: len(self.text) - len(bare)]
            self.text = bare
            if bare or self.ended:
                return taken
            yield

    def more(self) -> Step[bool]:
        """Wait for one character at least; False at the end."""
        while not self.text and not self.ended:
            yield
        return bool(self.text)

    def word(self, stops: str) -> Step[str]:
        """Take what comes before any of the characters `stops`, or the end."""
        taken = ""
        while True:
            n = next((i for i, c in enumerate(self.text) if c in stops), len(self.text))
            taken += self.text[:n]
            self.text = self.text[n:]
            if self.text or self.ended:
                return taken
            yield


def _first(text: str, markers: Sequence[str]) -> tuple[int, str | None]:
    """Where the first marker begins, and the longest one that does there."""
    place, best = len(text), None
    for marker in markers:
        at = text.find(marker)
        if at >= 0 and (at < place or (at == place and (best is None or len(marker) > len(best)))):
            place, best = at, marker
    return place, best


def _held(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a marker."""
    for n in range(min(len(text), max(map(len, markers), default=0) - 1), 0, -1):
        end = text[-n:]
        if any(len(marker) > n and marker.startswith(end) for marker in markers):
            return n
    return 0
