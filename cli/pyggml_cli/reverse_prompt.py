"""`-r TEXT`: where such a text ends, generation ends, or the user is asked.

Owns the search, as llama.cpp's completion tool does it (tools/completion/completion.cpp, "check for reverse prompt"); must
not know who writes the text. A match may begin in the prompt, and special tokens count with their names.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyggml_cli.completion_flags import unescape
from pyggml_cli.flags import UsageError, Values

if TYPE_CHECKING:
    from pyggml.tokenizer import Tokenizer

N_PREV = 32  # tokens looked back at
SLACK = 2  # characters that may follow a text at the end of a prompt, where nobody is asked


class ReversePrompts:
    """The texts of `values`, sought in what `begin` and then `push` bring."""

    def __init__(self, values: Values, tokenizer: "Tokenizer") -> None:
        """Raises UsageError."""
        if "" in values.reverse_prompt:
            raise UsageError("-r needs a text")
        self.texts = [unescape(text) if values.escape else text for text in values.reverse_prompt]
        self._sought = [text.encode() for text in self.texts]
        self._longest = max(map(len, self._sought), default=0)
        self._tokenizer = tokenizer
        self._tail = b""

    def begin(self, tokens: Sequence[int], slack: int = 0) -> bool:
        """Go on after these tokens; whether one of the texts ends there, or at most `slack` bytes before."""
        if not self._sought:
            return False
        self._tail = b"".join(self._tokenizer.token_bytes(token) for token in tokens[-N_PREV:])
        return any(text in self._tail[-len(text) - slack :] for text in self._sought)

    def push(self, token: int) -> bool:
        """Whether one of the texts is complete with this token."""
        if not self._sought:
            return False
        piece = self._tokenizer.token_bytes(token)
        self._tail += piece
        found = any(text in self._tail[max(0, len(self._tail) - len(piece) - len(text) + 1) :] for text in self._sought)
        self._tail = self._tail[-self._longest :]
        return found
