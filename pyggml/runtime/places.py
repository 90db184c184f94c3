"""Which of a context's sequences a text gets, and what of its prompt is there already or can be brought there.

Owns the choice (llama-server's: tools/server/server-context.cpp, get_available_slot), copies between sequences and the prompts
of ended texts that are kept outside the context (idle_prompts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyggml.errors import ContextError
from pyggml.runtime.checkpoints import CheckpointRule
from pyggml.runtime.context import Context
from pyggml.runtime.context_sequence import ContextSequence
from pyggml.runtime.idle_prompts import IdlePrompts, Kept
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.slot import Slot, reusable

if TYPE_CHECKING:
    from pyggml.model.lora import Applied
    from pyggml.runtime.drafter import Drafter

LEAST = 32
"""Tokens that must be gained for a copy from another sequence, which costs a graph of its own; where cells are shared it costs nothing."""


class Place:
    """One of the context's sequences: the slot that its tokens are in, and the text that has it now."""

    def __init__(
        self, context: Context, seq: int, shifts: bool, n_keep: int, rule: CheckpointRule, chunk: int = 0
    ) -> None:
        self.seq, self._context = seq, context
        self.slot = Slot(
            ContextSequence(context, seq),
            shifts=shifts,
            n_keep=n_keep,
            memory=context.memory,
            seq=seq,
            rule=rule,
            chunk=chunk,
        )
        self.sequence: Text | None = None
        self.drafter: Drafter | None = None  # guesses at whatever text has the place
        self.adapters: tuple[Applied, ...] | None = None  # that its tokens were computed with
        self.used = 0  # the step in which a text last had it
        self.stop = 0  # tokens of a prompt that are to come when a checkpoint is made

    def would_keep(self, sequence: Text) -> int:
        """Tokens of a new text that need not be computed here; for one that reuses none, less where more is lost."""
        if not sequence.reuses:
            return -len(self.slot.tokens)
        return self.slot.would_keep(sequence.tokens) if self.adapters == sequence.adapters else 0

    def dump(self) -> Kept:
        """All that is to be kept of its tokens."""
        slot, memory = self.slot, self._context.memory
        bodies = [b"".join(part.pieces(self.seq)) for part in memory.parts]
        return Kept(list(slot.tokens), slot.forgotten, bodies, list(slot.checkpoints.kept), self.adapters)

    def load(self, kept: Kept) -> bool:
        """Have these tokens. False where there is no room for them; the place is empty then."""
        slot, memory = self.slot, self._context.memory
        slot.go_back(0)
        try:
            memory.load_parts(self.seq, kept.bodies)
        except ContextError:
            return False
        slot.tokens, slot.forgotten, self.adapters = list(kept.tokens), kept.forgotten, kept.adapters
        slot.checkpoints.take(kept.checkpoints)
        return True


class Places:
    """All of a context's.

    similarity  what share of a prompt a free place must have to be taken for that; else the one that was free longest is
                (--slot-prompt-similarity)
    idle        prompts of ended texts, kept outside the context; None: none are
    clears      a text that begins has what ended texts left in other places put there, so that shared cells are free
                (--cache-idle-slots)
    chunk       as Slot has it
    """

    def __init__(
        self,
        context: Context,
        shifts: bool,
        n_keep: int,
        rule: CheckpointRule,
        similarity: float = 0.0,
        idle: IdlePrompts | None = None,
        clears: bool = False,
        chunk: int = 0,
    ) -> None:
        self.all = [Place(context, seq, shifts, n_keep, rule, chunk) for seq in range(context.n_seq_max)]
        self.similarity, self.idle, self.clears = similarity, idle, clears and idle is not None
        self._context = context
        self.on_idle: Callable[[str], None] = lambda text: None
        """Called with a line where a prompt is kept or brought back."""

    def free_for(self, text: Text) -> Place | None:
        """The place that it wants, or the free one that has most of its prompt, else the one that was free longest; None: it has
        to wait."""
        if text.after is not None and not text.after.ends and text.after.finish is None:
            return None  # its prompt is computed there
        free = [place for place in self.all if place.sequence is None]
        if text.wants is not None:
            free = [place for place in free if place.seq == text.wants]
        if not free:
            return None
        best = max(free, key=lambda p: (p.would_keep(text), -p.used, -p.seq))
        if text.reuses and best.would_keep(text) <= self.similarity * len(text.tokens):
            return min(free, key=lambda p: (p.used, p.seq))
        return best

    def give(self, place: Place, text: Text, step: int) -> None:
        """Let the text have it, with as much of its prompt as is to be had."""
        place.sequence, place.used, text.seq = text, step, place.seq
        slot = place.slot
        if text.shift is not None:
            slot.shift_by(*text.shift)
        if not text.reuses:
            slot.go_back(0)
        elif place.adapters != text.adapters:
            self._put_away(place, text)
            slot.go_back(0)
        else:
            kept = slot.would_keep(text.tokens)
            other = self._other(place, text.tokens, kept)
            stored = None if self.idle is None else self.idle.find(text.tokens, text.adapters)
            from_other = 0 if other is None else other.slot.would_keep(text.tokens)
            if stored is not None and stored.would_keep(text.tokens) > max(kept, from_other):
                assert self.idle is not None
                self.idle.take(stored)  # before what is put away now takes its room
                other = None
            else:
                stored = None
            if kept < len(slot.tokens) / 2:
                self._put_away(place, text)
            if stored is not None and place.load(stored):
                self.on_idle(f"{len(stored.tokens)} tokens are brought back into slot {place.seq}")
            elif other is not None:
                self._copy(other, place, text.tokens)
        place.adapters = text.adapters
        text.reuse(slot.begin(text.tokens))
        if self.clears:
            for idle in self.all:
                if idle.sequence is None and idle.slot.tokens:
                    self._put_away(idle, text)
                    idle.slot.go_back(0)
                    self.on_idle(f"slot {idle.seq}: its cells are free: __TEST_TAG_CACHE_IDLE_SLOT__")

    def _put_away(self, place: Place, text: Text) -> None:
        """Keep what the place has outside the context, where that is wanted."""
        slot = place.slot
        if self.idle is None or not slot.tokens or slot.forgotten or not text.reuses:
            return
        if self.idle.has(slot.tokens, place.adapters):
            return
        if self.idle.keep(place.dump()):
            self.on_idle(
                f"slot {place.seq}: updating prompt cache: {len(slot.tokens)} tokens, {self.idle.n_bytes / 1e6:.1f} MB in all"
            )

    def _other(self, place: Place, tokens: Sequence[int], kept: int) -> Place | None:
        """The place that has more of these tokens than `place` keeps, by enough."""
        least = 1 if self._context.kv_unified else LEAST
        found, most = None, kept + least
        for other in self.all:
            if other is place or other.adapters != place.adapters or other.slot.forgotten:
                continue
            n = other.slot.would_keep(tokens)
            if n >= most:
                found, most = other, n + 1
        return found

    def _copy(self, other: Place, place: Place, tokens: Sequence[int]) -> None:
        """Let `place` have what `other` has of these tokens, which stay there too."""
        memory = self._context.memory
        place.slot.go_back(0)
        n = reusable(tokens, other.slot.tokens)
        checkpoints = other.slot.checkpoints
        try:
            if not memory.why_not_copy(other.seq, 0, n):
                memory.copy(other.seq, place.seq, 0, n)
            else:
                checkpoint = checkpoints.before(n)
                assert checkpoint is not None, "would_keep has found one"
                n = checkpoint.end
                memory.branch(other.seq, place.seq, checkpoint)
        except ContextError:  # no room
            memory.remove(place.seq)
            return
        place.slot.tokens = list(tokens[:n])
        place.slot.checkpoints.take([one for one in checkpoints.kept if one.end <= n])
