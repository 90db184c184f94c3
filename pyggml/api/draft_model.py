"""`Llama(draft_model=...)`: somebody else's guesses at the next tokens, which the model computes together with the last one.

Owns the step from such a function to a drafter of the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DraftModel = Callable[..., Any]
"""Called with all tokens (n_tokens,) i32; gives those that may follow, in an array."""


class Asked:
    """A drafter that asks a draft model. What it says is only a guess: tokens that are none are left out with all after them."""

    def __init__(self, draft_model: DraftModel, n_vocab: int) -> None:
        self._ask, self._n_vocab = draft_model, n_vocab

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """As Drafter.draft of runtime/drafts.py."""
        guessed = [int(token) for token in self._ask(np.array(tokens, np.intc))][:most]
        return guessed[: next((i for i, token in enumerate(guessed) if not 0 <= token < self._n_vocab), None)]

    def kept(self, drafted: int, kept: int) -> None:
        """Draft models are not told."""
