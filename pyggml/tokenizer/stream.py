"""Tokens one at a time to text: a character whose bytes are spread over several tokens comes out whole.

Owns the bytes that wait for their rest; knows a tokenizer only by `token_bytes`.
"""

import codecs
from typing import Protocol


class Pieces(Protocol):
    """What is asked of a tokenizer: a token's bytes."""

    def token_bytes(self, token: int, special: bool = True) -> bytes: ...


class StreamDecoder:
    """`push(id)` gives the text that became complete, perhaps none; `finish()` what is left. Bytes that can never be
    UTF-8 become U+FFFD, so that the pieces joined equal `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Pieces, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token, self._special))

    def finish(self) -> str:
        """An unfinished character becomes U+FFFD. Afterwards the decoder starts anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
