"""Drafts: guesses at a text's next tokens, cheap to make, which the model then computes together with the token chosen last. Those that
are chosen are kept, so the text is the one that would have come without (llama.cpp: common/speculative.cpp, ngram-map.cpp): each
has the bits that it would have alone (ops/one_by_one.py).

Owns where guesses come from and how many are made; generate.py and batcher.py compare them with what is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyggml.errors import ModelError
from pyggml.runtime.context_sequence import ContextSequence
from pyggml.runtime.drafter import draft_size
from pyggml.runtime.slot import Slot

if TYPE_CHECKING:
    from pyggml.runtime.context import Context

FIRST = 7
"""Tokens of a first draft at most: the next ones go by how many were kept."""


class Adaptive:
    """How many tokens to draft: eight more after a draft that was kept whole, fewer after one that was not, so that guesses
    which fail cost little.

    most  at most so many
    """

    def __init__(self, most: int) -> None:
        self.limit = most
        self.most = min(FIRST, most)

    def kept(self, drafted: int, kept: int) -> None:
        if kept == drafted:
            self.most = min(self.limit, max(self.most, drafted) + 8)
        else:
            self.most = min(self.limit, max(2, kept + kept // 2))


class NgramDrafter(Adaptive):
    """The tokens that followed when the last `n` tokens stood in the text before, the last time that they did.

    m        tokens of a draft at most
    per_key  each run of `n` tokens has its own count of tokens that were kept when it was used last (ngram-map-k), not all
             together (ngram-simple)
    """

    def __init__(self, n: int = 12, m: int = 48, *, per_key: bool = False) -> None:
        assert n >= 1 and m >= 1, (n, m)
        super().__init__(m)
        self.n, self.per_key = n, per_key
        self._places: dict[tuple[int, ...], int] = {}  # where what follows a run of tokens begins
        self._counts: dict[tuple[int, ...], int] = {}
        self._known = 0  # runs that end before this token are in `_places`
        self._key: tuple[int, ...] = ()

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        n, end = self.n, len(tokens)
        if end < self._known:  # another text
            self._places.clear()
            self._known = 0
        for i in range(max(self._known, n), end):
            self._places[tuple(tokens[i - n : i])] = i
        self._known = end
        if end <= n:
            return []
        self._key = key = tuple(tokens[end - n :])
        at = self._places.get(key)
        if at is None:
            return []
        if self.per_key:
            self.most = self._counts.get(key, min(FIRST, self.limit))
        return list(tokens[at : at + min(most, self.most)])

    def kept(self, drafted: int, kept: int) -> None:
        super().kept(drafted, kept)
        if self.per_key:
            self._counts[self._key] = self.most


class ModelDrafter(Adaptive):
    """The tokens that a smaller model finds most likely, as long as it is sure enough.

    context  of the smaller model, of which it has sequence `seq`
    p_min    how likely a token must be; least  drafts of fewer tokens are not worth it
    """

    def __init__(self, context: Context, most: int = 3, *, p_min: float = 0.0, least: int = 0, seq: int = 0) -> None:
        super().__init__(most)
        self.most = most
        self.p_min, self.least = p_min, least
        alone = ContextSequence(context, seq) if context.n_seq_max > 1 else context
        self.slot = Slot(alone, memory=context.memory, seq=seq)

    def kept(self, drafted: int, kept: int) -> None:
        """As many the next time: the model says itself how sure it is."""

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        room = self.slot.context.n_ctx - len(tokens) - 1
        if room < 1:
            return []
        logits = self.slot.prefill(tokens[self.slot.begin(tokens) :])
        drafted: list[int] = []
        n = draft_size(min(most, self.limit, room))
        for _ in range(n):
            if logits is None:
                break
            token = int(logits.argmax())
            if self.p_min and _probability(logits, token) < self.p_min:
                break
            drafted.append(token)
            if len(drafted) < n:
                logits = self.slot.decode([token])
        return drafted if len(drafted) >= self.least else []


def check_same_tokens(model: Context, draft: Context) -> None:
    """Raises ModelError where a draft model's tokens are others than the model's (speculative.cpp:
    common_speculative_are_compatible)."""
    theirs, ours = draft.model, model.model
    if abs(theirs.n_vocab - ours.n_vocab) > 128:
        raise ModelError(
            f"the draft model has {theirs.n_vocab} tokens and the model {ours.n_vocab}: they must be the same tokens"
        )
    lists = [context.model.file.metadata.get("tokenizer.ggml.tokens") for context in (model, draft)]
    if lists[0] is not None and lists[1] is not None:
        n = min(len(lists[0]), len(lists[1]))
        for i in range(5, n):
            if lists[0][i] != lists[1][i]:
                raise ModelError(
                    f"token {i} of the draft model is {lists[1][i]!r:.40}, of the model {lists[0][i]!r:.40}"
                )


def _probability(logits: np.ndarray, token: int) -> float:
    wide = logits.astype(np.float64)
    return float(1.0 / np.exp(wide - wide[token]).sum())
