"""Logits along a text that is given: nothing is chosen. Owns which tokens' logits are asked for, and in what portions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Decoder(Protocol):
    """What is asked of a Context."""

    @property
    def n_ubatch(self) -> int:
        """Tokens computed at a time."""

    def decode(
        self, tokens: Any, n_past: int | None = None, logits: Literal["last", "all", "none"] = "last"
    ) -> "NDArray[np.float32]":
        """Compute `tokens` after the first `n_past`, or after all; (n_out, n_vocab)."""


def rows(context: Decoder, tokens: "NDArray[np.int32]", first: int) -> "Iterator[tuple[int, int, NDArray[np.float32]]]":
    """(i, end, logits (end - i, n_vocab) after each of tokens[i:end]), from token `first` to the last, a micro-batch at a time.

    The tokens (n,) replace what the context holds. Raises ContextError, ComputeError.
    """
    context.decode(tokens[:first], 0, logits="none")
    for i in range(first, len(tokens), context.n_ubatch):
        end = min(i + context.n_ubatch, len(tokens))
        yield i, end, context.decode(tokens[i:end], logits="all")
