"""What `Llama.save_state` gives and `load_state` takes: a text computed, to go back to, as llama_cpp.LlamaState.

Owns what is kept beside the context's own state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LlamaState:
    """input_ids (n_tokens,), scores: their logits as `Llama.scores` has them, llama_state: keys and values."""

    input_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int
