"""What the sampler asks of a vocabulary. Owns the protocol."""

from collections.abc import Set
from typing import Protocol


class Vocabulary(Protocol):
    """A part of pyggml.tokenizer.Tokenizer."""

    @property
    def n_vocab(self) -> int:
        """The number of tokens."""

    @property
    def eog_ids(self) -> Set[int]:
        """The tokens that end a generation."""

    eos: int | None
    eot: int | None

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """What the token adds to the text; of control tokens only with `special`."""

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The tokens of a text."""
