"""Texts that end a generation: stop texts, which are cut off, and reverse prompts, which stay.

Owns the search, in bytes: a text may begin in one token and end in another.
"""

from collections.abc import Sequence
from typing import Protocol

N_PREV = 32  # tokens of a prompt that a reverse prompt may begin in (tools/completion/completion.cpp, n_prev)
SLACK = 2  # bytes that may follow a reverse prompt at the end of a prompt where nobody is asked (completion.cpp)


class Stops(Protocol):
    """When enough is said. A `Sequence` asks after each token."""

    def push(self, token: int, data: bytes) -> int | None:
        """After `token`, which adds `data` to the text: None to go on, else how many bytes to take off its end."""

    def held(self) -> int:
        """Bytes at the end of the text that may turn out to be cut off."""


class Pieces(Protocol):
    """A part of pyggml.tokenizer.Tokenizer."""

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """What the token adds to the text; of control tokens only with `special`."""


class Search:
    """Several texts, sought in bytes that come piece by piece."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        assert b"" not in texts, "an empty text is everywhere"
        self._texts = list(texts)
        self._longest = max(map(len, self._texts), default=0)
        self._tail = b""

    def begin(self, data: bytes, slack: int = 0) -> bool:
        """Start anew after `data`; whether one of the texts ends there, or at most `slack` bytes before."""
        self._tail = data
        return any(text in data[-len(text) - slack :] for text in self._texts)

    def push(self, piece: bytes) -> int | None:
        """How many bytes before the end the first of the texts begins that is complete with `piece`; None: there is none."""
        if not self._texts:
            return None
        tail = self._tail + piece
        new = len(tail) - len(piece)
        found = [at for at in (tail.find(text, max(0, new - len(text) + 1)) for text in self._texts) if at >= 0]
        self._tail = tail[-self._longest :]
        return len(tail) - min(found) if found else None

    def partial(self) -> int:
        """Bytes at the end that one of the texts begins with, of which more may come."""
        tail = self._tail
        return max(
            (n for s in self._texts for n in range(1, min(len(s), len(tail) + 1)) if tail.endswith(s[:n])), default=0
        )


class StopTexts:
    """Texts that end an answer and are not part of it."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._search = Search(texts)

    def push(self, token: int, data: bytes) -> int | None:
        """As Stops.push."""
        return self._search.push(data)

    def held(self) -> int:
        """As Stops.held."""
        return self._search.partial()


class ReversePrompts:
    """Texts with which it is somebody else's turn. They stay; one may begin in the prompt, and special tokens count with
    their names (tools/completion/completion.cpp, "check for reverse prompt")."""

    def __init__(self, texts: Sequence[bytes], tokenizer: Pieces) -> None:
        self._search = Search(texts)
        self._tokenizer = tokenizer

    def begin(self, tokens: Sequence[int], slack: int = 0) -> bool:
        """Go on after these tokens; whether one of the texts ends there, or at most `slack` bytes before."""
        return self._search.begin(b"".join(map(self._tokenizer.token_bytes, tokens[-N_PREV:])), slack)

    def push(self, token: int, data: bytes) -> int | None:
        """As Stops.push."""
        return None if self._search.push(self._tokenizer.token_bytes(token)) is None else 0

    def held(self) -> int:
        """Nothing is cut off."""
        return 0


def partial_character(data: bytes | bytearray) -> int:
    """Bytes at the end that are the beginning of a UTF-8 character, 0 to 3."""
    for n in range(1, min(4, len(data) + 1)):
        byte = data[-n]
        if byte >= 0xF8:  # begins none
            return 0
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return n if n < length else 0
        if byte < 0x80:
            return 0
    return 0
