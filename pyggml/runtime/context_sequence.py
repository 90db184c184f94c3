"""One sequence of a context, for who has a text and no interest in the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyggml.runtime import encoding
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context

if TYPE_CHECKING:
    from pyggml.jit import Job


class ContextSequence:
    """One sequence of a context, as if it had the context to itself."""

    def __init__(self, context: Context, seq: int) -> None:
        self.context, self.seq = context, seq

    @property
    def n_ctx(self) -> int:
        """Tokens that it can have."""
        return self.context.n_ctx_seq

    @property
    def n_ubatch(self) -> int:
        """Tokens computed at a time."""
        return self.context.n_ubatch

    @property
    def n_past(self) -> int:
        """Tokens that are decoded."""
        return self.context.memory.end(self.seq)

    @property
    def start_token(self) -> int | None:
        """What an answer to an encoded text begins with; None: there is no encoder."""
        return self.context.start_token

    @property
    def text(self) -> tuple[int, ...]:
        """The tokens of the text that is encoded."""
        return encoding.text_of(self.context, self.seq)

    def encode(self, tokens: Sequence[int]) -> None:
        """Let an encoder read this text. Raises ContextError, ComputeError."""
        self.context.encode(tokens, self.seq)

    def decode(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Compute these after those there; logits (1, n_vocab) of the last. Raises ContextError, ComputeError."""
        return self.context.decode(Batch.of(tokens, self.n_past, self.seq))

    def verify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """As `decode`, with the logits of each, which are those that it would have alone."""
        return self.context.decode(Batch.of(tokens, self.n_past, self.seq, "all", one_by_one=len(tokens) > 1))

    def prepare(self, n_tokens: int) -> list[Job]:
        """Begin to compile what so many tokens need; the jobs to wait for."""
        return self.context.prepare(n_tokens)

    def truncate(self, n: int) -> None:
        """Forget all tokens but the first `n`. Raises ContextError."""
        self.context.truncate(n, self.seq)

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Forget `n_discard` tokens after the first `n_keep`; those behind them move up. Raises ContextError, ComputeError."""
        self.context.shift(n_keep, n_discard, self.seq)
