"""A slot that remembers logits: those of the last token, or of every token.

Owns rows of logits beside the tokens that they follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import ContextError
from pyggml.memory.base import Checkpoint
from pyggml.runtime.context import Context
from pyggml.runtime.slot import Slot, reusable

F32 = NDArray[np.float32]


class ScoredSlot(Slot):
    """Tokens are computed `n_batch` at a time; nothing is forgotten when the context is full.

    scores  (n_ctx, n_vocab) with logits_all: row i are the logits after token i; else (1, n_vocab): after the last
    """

    def __init__(self, context: Context, n_batch: int, logits_all: bool, tell: Callable[[str], None]) -> None:
        """`tell` is called with a line where tokens of a prompt need not be computed."""
        super().__init__(context, spare=0, n_batch=n_batch, memory=context.memory)
        self._context, self._n_batch = context, n_batch
        self._tell = tell
        self.logits_all = logits_all
        self.scores: F32 = np.zeros((context.n_ctx if logits_all else 1, context.model.n_vocab), np.float32)
        self.scored = -1  # position of the token that the newest logits belong to
        self._prepared = logits_all  # whether kernels were asked for; those for all logits are others

    @property
    def last_logits(self) -> F32:
        """(n_vocab,): the logits after the last token. Raises ContextError when there is none."""
        if not self.scored == len(self.tokens) - 1 >= 0:
            raise ContextError("no logits: nothing was evaluated since the last reset or step back")
        row: F32 = self.scores[self.scored if self.logits_all else 0]
        return row

    def begin(self, tokens: Sequence[int]) -> int:
        """As Slot.begin; where all tokens and their logits are there, nothing need be computed."""
        if list(tokens) == self.tokens and self.scored == len(tokens) - 1:
            kept = len(tokens)
        else:
            self.checkpoints.begin()
            kept = self.go_back(self.reach(reusable(tokens, self.tokens)))
        if kept:
            self._tell(f"{kept} of {len(tokens)} prompt tokens are already there")
        return kept

    def go_back(self, n: int) -> int:
        """As Slot.go_back. Raises ContextError when there are not so many tokens."""
        if not 0 <= n <= len(self.tokens):
            raise ContextError(f"cannot keep {n} tokens, {len(self.tokens)} are evaluated")
        del self.tokens[n:]
        return n  # the context goes back when something is computed

    def make_room(self, n: int) -> bool:
        """All of the context may be filled; what does not fit is `decode`'s to refuse."""
        return True

    def prepare(self, n: int) -> None:
        """As Slot.prepare, the first time."""
        if not self._prepared:
            self._prepared = True
            super().prepare(n)

    def settle(self) -> None:
        """Let the context have forgotten what is no longer here; what it cannot go back to is computed anew."""
        context, n = self._context, len(self.tokens)
        if context.n_past <= n:
            return
        for at in range(self._rewind(n), n, self._n_batch):
            context.decode(self.tokens[at : min(n, at + self._n_batch)], logits="none")

    def decode(self, tokens: Sequence[int]) -> F32:
        """As Slot.decode; without tokens the logits that are there. Raises ContextError when they do not fit."""
        context = self._context
        if len(self.tokens) + len(tokens) > context.n_ctx:
            raise ContextError(f"{len(self.tokens)} + {len(tokens)} tokens exceed the context of {context.n_ctx}")
        self.settle()
        self.prepare(len(tokens))
        for at in range(0, len(tokens), self._n_batch):
            batch = list(tokens[at : at + self._n_batch])
            first = len(self.tokens)
            logits = context.decode(batch, logits="all" if self.logits_all else "last")
            self.tokens += batch
            if self.logits_all:
                self.scores[first : len(self.tokens)] = logits
            else:
                self.scores[0] = logits[-1]
            self.scored = len(self.tokens) - 1
        return self.last_logits

    def verify(self, tokens: Sequence[int]) -> F32:
        """As Slot.verify; the rows are kept as `decode` keeps them."""
        self.settle()
        context, rows = self._context, np.empty((len(tokens), self.scores.shape[1]), np.float32)
        for at in range(0, len(tokens), self._n_batch):
            batch = list(tokens[at : at + self._n_batch])
            rows[at : at + len(batch)] = context.decode(batch, logits="all", one_by_one=True)
            self.tokens += batch
        first, last = len(self.tokens) - len(tokens), len(self.tokens)
        if self.logits_all:
            self.scores[first:last] = rows
        else:
            self.scores[0] = rows[-1]
        self.scored = last - 1
        return rows

    def restore(self, tokens: Sequence[int], scores: F32, checkpoints: Sequence[Checkpoint] = ()) -> None:
        """Now the context has these tokens, and these are checkpoints of them; `scores` as `kept_scores` gave them, here or
        where fewer or more are kept."""
        self.checkpoints.take(checkpoints)
        self.tokens = [int(token) for token in tokens]
        n_rows = min(len(scores), len(self.scores))
        complete = n_rows and len(scores) == (len(self.tokens) if self.logits_all else 1)
        if complete:
            self.scores[:n_rows] = scores[:n_rows]
        self.scored = len(self.tokens) - 1 if complete else -1

    def kept_scores(self) -> F32:
        """A copy of the rows of logits that belong to the tokens."""
        n = len(self.tokens)
        return self.scores[: n if self.logits_all else int(self.scored == n - 1 >= 0)].copy()
