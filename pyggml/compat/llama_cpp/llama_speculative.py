"""llama_cpp.llama_speculative: guesses at the next tokens, for `Llama(draft_model=...)`.

Owns the guess after an n-gram seen before.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.intc]


class LlamaDraftModel(ABC):
    """Guesses what follows."""

    @abstractmethod
    def __call__(self, input_ids: I32, /, **kwargs: Any) -> I32:
        """Tokens (n,) that may follow input_ids (n_tokens,)."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """What followed the last `max_ngram_size` tokens, or fewer, where they came first."""

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size, self.num_pred_tokens = max_ngram_size, num_pred_tokens

    @staticmethod
    def find_candidate_pred_tokens(input_ids: I32, max_ngram_size: int, num_pred_tokens: int) -> I32:
        """At most num_pred_tokens tokens, none where nothing fits (after llama_speculative.py of 0.3.36)."""
        n_tokens = len(input_ids)
        for n in range(min(max_ngram_size, n_tokens - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(input_ids, n)[:-1]  # but the last n-gram itself
            (places,) = np.nonzero((windows == input_ids[-n:]).all(axis=1))
            if len(places):
                first = places[0] + n
                return input_ids[first : first + num_pred_tokens]
        return np.array([], np.intc)

    def __call__(self, input_ids: I32, /, **kwargs: Any) -> I32:
        """As find_candidate_pred_tokens."""
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)
