"""Guesses of a smaller model, which has a sequence for each text: those of several texts are computed together, a token of each
in a step (llama.cpp: common/speculative.cpp).

Owns the smaller model's context; which guesses are kept is the business of who asks (sequence.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import ContextError, ModelError
from pyggml.runtime.batch import Batch
from pyggml.runtime.context_sequence import ContextSequence
from pyggml.runtime.drafter import Steps, Wanted, draft_size, draft_together
from pyggml.runtime.slot import Slot

if TYPE_CHECKING:
    from pyggml.runtime.context import Context

Row = NDArray[np.float32]
CHUNK = 64
"""Tokens of a text that the smaller model lacks and computes in a step at most where there may be other texts, which wait meanwhile."""


class DraftModel:
    """most     tokens of a draft at most
    p_min    how likely a token must be; least  drafts of fewer tokens are not worth it
    context  of the smaller model; it is its owner's to close
    """

    def __init__(self, context: Context, most: int = 3, *, p_min: float = 0.0, least: int = 0) -> None:
        self.context = context
        self.most, self.p_min, self.least = most, p_min, least
        self.chunk = CHUNK if context.n_seq_max > 1 else context.n_ctx
        self.slots = [
            Slot(ContextSequence(context, seq), memory=context.memory, seq=seq) for seq in range(context.n_seq_max)
        ]
        self._count = itertools.count(1)
        self._used = [0] * context.n_seq_max  # when each was computed last

    def drafter(self, seq: int = 0) -> ModelDrafter:
        """What guesses for the text of a sequence."""
        return ModelDrafter(self, seq)

    def compute(self, wanted: Sequence[tuple[int, list[int]]]) -> list[Row | None]:
        """The logits after the last of the tokens of each sequence. All None where sequences that share their cells have no room for them:
        then the one that nobody has asked for longest is forgotten, for the next time."""
        order = sorted(range(len(wanted)), key=lambda i: wanted[i][0])
        parts = [wanted[i] for i in order]
        ends = [self.slots[seq].context.n_past for seq, _ in parts]
        for seq, _ in parts:
            self._used[seq] = next(self._count)
        try:
            if self.context.n_seq_max == 1:
                rows = self.context.decode(parts[0][1])
            else:
                rows = self.context.decode(
                    Batch.join([Batch.of(tokens, end, seq) for (seq, tokens), end in zip(parts, ends, strict=True)])
                )
        except ContextError:
            self._make_room({seq for seq, _ in parts})
            return [None] * len(wanted)
        finally:
            for (seq, tokens), end in zip(parts, ends, strict=True):
                slot = self.slots[seq]
                slot.tokens += tokens[: slot.context.n_past - end]
        found: list[Row | None] = [None] * len(wanted)
        for i, row in zip(order, rows, strict=True):
            found[i] = row
        return found

    def _make_room(self, needed: set[int]) -> None:
        others = [seq for seq, slot in enumerate(self.slots) if slot.tokens and seq not in needed]
        if others:
            self.slots[min(others, key=lambda seq: self._used[seq])].go_back(0)


class ModelDrafter:
    """The tokens that a smaller model finds most likely after the text of one of its sequences, as long as it is sure enough."""

    def __init__(self, model: DraftModel, seq: int) -> None:
        self.model, self.seq = model, seq

    def kept(self, drafted: int, kept: int) -> None:
        """As many the next time: the model says itself how sure it is."""

    def lacks(self, tokens: Sequence[int]) -> int:
        """Tokens that are not computed yet."""
        return len(tokens) - self.model.slots[self.seq].would_keep(tokens)

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Raises ComputeError, DeviceError."""
        return draft_together([(self, tokens, most)])[0]

    def steps(self, tokens: Sequence[int], most: int) -> Steps:
        """None while a part of the text is still to be computed here."""
        model, slot = self.model, self.model.slots[self.seq]
        room = slot.context.n_ctx - len(tokens) - 1
        n = draft_size(min(most, model.most, room))
        if n < 1:
            return []
        left = list(tokens[slot.begin(tokens) :])
        if len(left) > model.chunk:
            yield Wanted(model, self.seq, left[: model.chunk])
            return []
        while stop := slot.next_stop(len(left)):
            if (yield Wanted(model, self.seq, left[:-stop])) is None:
                return []
            slot.checkpoints.mark()
            left = left[-stop:]
        logits = yield Wanted(model, self.seq, left)
        if not model.context.memory.can_remove(self.seq, slot.context.n_past - 1):
            slot.checkpoints.mark()  # where the next draft begins, if none of this one's tokens is chosen
        drafted: list[int] = []
        while logits is not None:
            token = int(logits.argmax())
            if model.p_min and _probability(logits, token) < model.p_min:
                break
            drafted.append(token)
            if len(drafted) == n:
                break
            logits = yield Wanted(model, self.seq, [token])
        return drafted if len(drafted) >= model.least else []


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
