"""A text's place in a context: which tokens are computed there, what of a new text is there already, and room for more.

Owns prefix reuse and the context shift, as llama.cpp's completion tool does it (tools/completion/completion.cpp): a
full context goes on without the older half of what is not to be kept. Where a memory cannot go back to any token, it
goes back to a checkpoint (checkpoints.py).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pyggml.errors import ContextError
from pyggml.prefix import common_prefix
from pyggml.runtime.checkpoints import CheckpointRule, Checkpoints

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyggml.jit import Job
    from pyggml.memory.base import Memory

    Row = NDArray[np.float32]


class Decoder(Protocol):
    """What a slot asks of a Context."""

    @property
    def n_ctx(self) -> int:
        """Tokens that there is room for."""

    @property
    def n_ubatch(self) -> int:
        """Tokens computed at a time."""

    @property
    def n_past(self) -> int:
        """Tokens computed."""

    @property
    def start_token(self) -> int | None:
        """What an answer to a text begins with, where an encoder reads the text; None: there is no encoder."""

    @property
    def text(self) -> tuple[int, ...]:
        """The tokens of the text that is encoded."""

    def encode(self, tokens: Sequence[int]) -> None:
        """Let the encoder read this text; what was decoded is forgotten."""

    def decode(self, tokens: Sequence[int]) -> "NDArray[np.float32]":
        """Compute these after those there; logits (1, n_vocab) of the last."""

    def verify(self, tokens: Sequence[int]) -> "NDArray[np.float32]":
        """As `decode`, with the logits (tokens, n_vocab) of each."""

    def prepare(self, n_tokens: int) -> "list[Job]":
        """Begin to compile what so many tokens need; the jobs to wait for."""

    def truncate(self, n: int) -> None:
        """Forget all tokens but the first `n`."""

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Forget `n_discard` tokens after the first `n_keep`; those behind them move up."""


def n_kept(keep: int, n_prompt: int, adds_bos: bool) -> int:
    """Tokens that a context shift keeps for --keep: all of the prompt for a negative number or one too large, else BOS too
    where the tokenizer puts it before a text (`adds_bos`)."""
    return n_prompt if keep < 0 or keep > n_prompt else keep + adds_bos


def reusable(tokens: Sequence[int], here: Sequence[int]) -> int:
    """How many of `tokens` need not be computed where those of `here` are; the last one's logits are always wanted."""
    return max(0, min(common_prefix(tokens, here), len(tokens) - 1))


class Slot:
    """One text in a context that nobody else uses.

    shifts     whether a full context goes on without the oldest tokens behind the first `n_keep`: `n_discard` of them, or half
    spare      tokens that the context could hold and does not, as in completion.cpp
    n_batch    tokens computed at a time, None: as many as there are
    memory     the context's, in which the text is sequence `seq`; None: it can go back to any token
    rule       how many checkpoints are kept where it cannot
    chunk      so many tokens in a row that stand further back in the text than in the next one are moved there, not computed: what
               they were computed from is another text then (--cache-reuse); 0: none are
    tokens     the text so far as it is computed, with what was forgotten
    forgotten  tokens behind the first `n_keep` that are no longer in the context
    """

    def __init__(
        self,
        context: Decoder,
        *,
        shifts: bool = False,
        n_keep: int = 0,
        spare: int = 1,
        n_batch: int | None = None,
        memory: "Memory | None" = None,
        seq: int = 0,
        rule: CheckpointRule = CheckpointRule(),  # noqa: B008, it is frozen
        chunk: int = 0,
    ) -> None:
        """Raises ContextError where texts are to shift in a memory that cannot."""
        if shifts and memory is not None and (why := memory.why_no_shift):
            raise ContextError(f"no context shift with this model: {why}")
        self.context = context
        self.shifts = shifts
        self.n_keep, self.n_discard = n_keep, 0
        self.n_batch = n_batch
        self.chunk = chunk if memory is not None and memory.rewinds and not memory.why_no_shift else 0
        self._room = context.n_ctx - spare
        self.tokens: list[int] = []
        self.forgotten = 0
        self._memory, self._seq = memory, seq
        self.checkpoints = Checkpoints(memory, seq, rule, context.n_ubatch)

    def shift_by(self, n_keep: int, n_discard: int) -> None:
        """What a full context keeps and forgets from now on; what it has forgotten behind other tokens cannot be gone on from."""
        if n_keep != self.n_keep and self.forgotten:
            self.go_back(self.n_keep)
        self.n_keep, self.n_discard = n_keep, n_discard

    def begin(self, tokens: Sequence[int]) -> int:
        """Go back to what the text has in common with these tokens; how many of them need not be computed."""
        self.checkpoints.begin()
        n = reusable(tokens, self.tokens)
        if self.chunk and not self.forgotten:
            n = self._moved(tokens, n)
        return self.go_back(n)

    def encode(self, text: Sequence[int]) -> int:
        """Let the encoder, where there is one, read this text unless it is the one that it has read last; how many tokens it has read.
        Raises ContextError, ComputeError."""
        if self.context.start_token is None or self.context.text == tuple(text):
            return 0
        self.go_back(0)
        self.context.encode(text)
        return len(text)

    def _moved(self, tokens: Sequence[int], n: int) -> int:
        """Behind the first `n` tokens, which both have, bring up what stands further back and comes next in `tokens`; how many of them
        are there then (tools/server/server-context.cpp: update_slots, n_cache_reuse)."""
        memory, seq, here, at = self._memory, self._seq, self.tokens, n
        assert memory is not None
        first, kept = n, here[:n]
        while at + self.chunk <= len(here) and n + self.chunk <= len(tokens) - 1:
            m = min(common_prefix(here[at:], tokens[n:]), len(tokens) - 1 - n)
            if m < self.chunk or memory.why_not_shift(seq, at, at + m, n - at):
                at += 1
                continue
            memory.remove(seq, n, at)
            memory.shift(seq, at, at + m, n - at)
            kept += here[at : at + m]
            at, n = at + m, n + m
        if len(kept) > first:
            memory.remove(seq, n)
            self.tokens = kept
        return n

    def would_keep(self, tokens: Sequence[int]) -> int:
        """What `begin` would answer."""
        n = reusable(tokens, self.tokens)
        if n < self.n_keep + self.forgotten and self.forgotten:
            return self.reach(min(n, self.n_keep))
        kept = self.reach(n - self.forgotten)
        return kept + self.forgotten if kept or n == self.forgotten else 0

    def reach(self, n: int) -> int:
        """How many of its first `n` tokens the context can go back to."""
        if self._memory is None or self._memory.can_remove(self._seq, n):
            return n
        checkpoint = self.checkpoints.before(n)
        return 0 if checkpoint is None else checkpoint.end

    def go_back(self, n: int) -> int:
        """Keep the first `n` tokens of the text, or so many of them as can still be gone back to; how many those are."""
        if n < self.n_keep + self.forgotten:
            n, self.forgotten = min(n, self.n_keep) if self.forgotten else n, 0
        n = self._rewind(n - self.forgotten) + self.forgotten
        del self.tokens[n:]
        return n

    def _rewind(self, n: int) -> int:
        """Let the context have its first `n` tokens, or as many as it had at the last checkpoint before, or none."""
        memory, checkpoint = self._memory, self.checkpoints.before(n)
        if memory is None or memory.can_remove(self._seq, n):
            self.context.truncate(n)
        elif checkpoint is not None and memory.restore(self._seq, checkpoint, checkpoint.end):
            n = checkpoint.end
        else:
            self.context.truncate(0)
            n = self.forgotten = 0
        self.checkpoints.forget(n)
        return n

    def next_stop(self, left: int, points: Sequence[int] = ()) -> int:
        """Of a prompt's `left` tokens, how many are to be computed after the next checkpoint; 0: all, there is none."""
        return self.checkpoints.next_stop(self.context.n_past + left, left, points)

    def prefill(self, tokens: Sequence[int], points: Sequence[int] = ()) -> "Row | None":
        """As `decode`, of a prompt, with checkpoints on the way. `points`: tokens from the beginning of each message of a
        user to the end."""
        while stop := self.next_stop(len(tokens), points):
            if self.decode(tokens[:-stop]) is None:
                return None
            self.checkpoints.mark()
            tokens = tokens[-stop:]
        return self.decode(tokens)

    def make_room(self, n: int) -> bool:
        """Whether `n` further tokens fit, perhaps because others are forgotten now."""
        context = self.context
        while context.n_past + n > self._room:
            others = context.n_past - self.n_keep
            n_discard = min(self.n_discard or others // 2, others - 1)
            if not self.shifts or n_discard < 1:
                return False
            context.shift(self.n_keep, n_discard)
            self.forgotten += n_discard
            self.checkpoints.forget()  # their positions are others now
        return True

    @property
    def rewinds(self) -> bool:
        """Whether the context can go back to any token: what drafts need, most of which are not kept."""
        return self._memory is None or self._memory.rewinds

    @property
    def room(self) -> int:
        """Further tokens that fit as they are."""
        return self._room - self.context.n_past

    def verify(self, tokens: Sequence[int]) -> "NDArray[np.float32]":
        """Go on with these, for which there is room; the logits (tokens, n_vocab) after each. Raises ContextError,
        ComputeError."""
        before = self.context.n_past
        try:
            return self.context.verify(tokens)
        finally:
            self.tokens += tokens[: self.context.n_past - before]

    def prepare(self, n: int) -> None:
        """Wait until the kernels for so many further tokens, and for single ones after them, are compiled."""
        from pyggml import jit

        jit.wait(self.context.prepare(n))

    def decode(self, tokens: Sequence[int]) -> "Row | None":
        """Go on with these; the logits (n_vocab,) after the last. None when there is no room, perhaps for the last of them.

        After an error `tokens` are those that were completed. Raises ContextError, ComputeError.
        """
        context, logits = self.context, None
        step = min(len(tokens), self.n_batch or len(tokens))
        if self.shifts and context.n_past + len(tokens) > self._room:
            step = min(step, max(1, (context.n_ctx - self.n_keep) // 4))  # so much room there always is
        for at in range(0, len(tokens), step or 1):
            part = tokens[at : at + step]
            if not self.make_room(len(part)):
                return None
            before = context.n_past
            try:
                logits = context.decode(part)[-1]
            finally:
                self.tokens += part[: context.n_past - before]
        return logits
