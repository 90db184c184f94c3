"""`Llama.save_state` and `load_state`: go back to where a conversation was, as llama_cpp.Llama does it.

Owns what is kept beside the context's own state; must not know that state's format (model/state.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import StateError
from pyggml.model.state import State, parts

if TYPE_CHECKING:
    from pyggml.engine import Llama


@dataclass(frozen=True)
class LlamaState:
    """input_ids (n_tokens,), scores: their logits as `Llama.scores` has them, llama_state: keys and values."""

    input_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int


def save_state(self: Llama) -> LlamaState:
    """A copy of all that the tokens evaluated have left behind; it may be pickled."""
    with self._turns:
        context = self.context
        if context.n_past > self.n_tokens:
            context.truncate(self.n_tokens)
        ids = self.input_ids[: self.n_tokens].copy()
        data = b"".join(parts(context, ids.tolist()))
        n_rows = self.n_tokens if self._logits_all else int(self._scored == self.n_tokens - 1 >= 0)
        return LlamaState(ids, self.scores[:n_rows].copy(), self.n_tokens, data, len(data), self.seed)


def load_state(self: Llama, state: LlamaState) -> None:
    """Go on from there. Raises StateError when it is of another model, or longer than this context."""
    saved = State.parse(state.llama_state, "state")
    if len(saved.tokens) > self.n_ctx():
        raise StateError(f"state: {len(saved.tokens)} tokens do not fit into a context of {self.n_ctx()}")
    with self._turns as turns:
        turns.begin()
        saved.restore(self.context, len(saved.tokens))
        self.n_tokens = len(saved.tokens)
        self.input_ids[: self.n_tokens] = saved.tokens
        n_rows = min(len(state.scores), len(self.scores))
        complete = n_rows and len(state.scores) == (self.n_tokens if self._logits_all else 1)
        if complete:
            self.scores[:n_rows] = state.scores[:n_rows]
        self._scored = self.n_tokens - 1 if complete else -1
        self.seed = state.seed
