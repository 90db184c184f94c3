"""Continuous batching: many texts in one context, computed together; each joins and leaves when it likes.

Owns who has which of the context's sequences, and what a step computes: a token of each text that is under way first, then
as much of waiting prompts as the batch has room for. What a text is made of is sequence.py's business, prefix reuse and the
context shift slot.py's. (llama.cpp does this in tools/server/server-context.cpp: update_slots.)
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple

from pyggml.errors import ContextError, GrammarError, SamplerError
from pyggml.runtime.batch import Batch
from pyggml.runtime.checkpoints import CheckpointRule
from pyggml.runtime.context import Context
from pyggml.runtime.context_sequence import ContextSequence
from pyggml.runtime.sequence import Finish, Piece, Sequence
from pyggml.runtime.slot import Slot
from pyggml.runtime.timings import clock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Outputs = Literal["last", "all", "none"]


class Place:
    """One of the context's sequences: the slot that its tokens are in, and the text that has it now."""

    def __init__(self, context: Context, seq: int, shifts: bool, n_keep: int, rule: CheckpointRule) -> None:
        self.seq = seq
        self.slot = Slot(
            ContextSequence(context, seq), shifts=shifts, n_keep=n_keep, memory=context.memory, seq=seq, rule=rule
        )
        self.sequence: Sequence | None = None
        self.used = 0  # the step in which a text last had it
        self.stop = 0  # tokens of a prompt that are to come when a checkpoint is made

    def would_keep(self, sequence: Sequence) -> int:
        """Tokens of a new text that need not be computed here; for one that reuses none, less where more is lost."""
        return self.slot.would_keep(sequence.tokens) if sequence.reuses else -len(self.slot.tokens)


class Part(NamedTuple):
    """What a step computes of a text: `tokens`, which may end with a `draft`; `whole`: they are all that it waits for."""

    place: Place
    tokens: list[int]
    whole: bool
    draft: list[int]

    @property
    def outputs(self) -> Outputs:
        return "all" if self.draft else "last" if self.whole else "none"


class Batcher:
    """`add` texts, then `step` until none is left.

    n_batch  tokens that a step computes at most
    shifts   whether a text whose sequence is full goes on without its oldest tokens behind the first `n_keep`
    rule     checkpoints of each sequence, where the context cannot go back to any token
    """

    def __init__(
        self,
        context: Context,
        n_batch: int = 2048,
        *,
        shifts: bool = False,
        n_keep: int = 0,
        rule: CheckpointRule = CheckpointRule(),  # noqa: B008, it is frozen
    ) -> None:
        """Raises ContextError where texts are to shift in a context that cannot."""
        assert n_batch >= 1, n_batch
        self.context = context
        self.n_batch = n_batch
        self.places = [Place(context, seq, shifts, n_keep, rule) for seq in range(context.n_seq_max)]
        self.waiting: deque[Sequence] = deque()
        self.steps = 0

    def add(self, sequence: Sequence) -> None:
        """The text waits until a sequence of the context is free. Raises ContextError for a prompt that never fits."""
        if len(sequence.tokens) > self.context.n_ctx_seq - 1:
            raise ContextError(
                f"a prompt of {len(sequence.tokens)} tokens: a sequence has {self.context.n_ctx_seq}, one of them for the "
                "answer"
            )
        assert sequence.pending, "a text of no tokens"
        self.waiting.append(sequence)

    @property
    def active(self) -> list[Sequence]:
        """Texts that have a sequence of the context."""
        return [place.sequence for place in self.places if place.sequence is not None]

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.active

    def step(self) -> list[tuple[Sequence, Piece | None]]:
        """Compute once; the tokens that were chosen. A text that ends without another token (no room, cancelled, none
        wanted, its sampler failed) comes with None, and `finish` says why.

        After an error the texts are where the last completed micro-batch left them. Raises ComputeError, DeviceError.
        """
        self.steps += 1
        said: list[tuple[Sequence, Piece | None]] = self._leave()
        self._join()
        said += self._leave()
        while True:
            parts = self._parts()
            if not parts:
                return said
            try:
                rows = self._compute(parts)
            except ContextError:  # of sequences that share their cells
                self._make_room()
                said += self._leave()
                continue
            return said + self._push(parts, rows)

    def _make_room(self) -> None:
        """Forget what an ended text has left behind, the oldest first; where there is none, the longest text ends."""
        left = [place for place in self.places if place.sequence is None and place.slot.tokens]
        if left:
            min(left, key=lambda p: p.used).slot.go_back(0)
            return
        place = max(self.places, key=lambda p: len(p.slot.tokens))
        assert place.sequence is not None, "no text is under way"
        place.sequence.finish = Finish.FULL

    def _leave(self) -> list[tuple[Sequence, Piece | None]]:
        """Texts that are to end before their next token give their places back."""
        said: list[tuple[Sequence, Piece | None]] = []
        for place in self.places:
            sequence = place.sequence
            if sequence is None:
                continue
            if sequence.finish is None and sequence.cancelled:
                sequence.finish = Finish.CANCELLED
            if sequence.finish is None and not place.slot.make_room(1):
                sequence.finish = Finish.FULL
            if sequence.finish is not None:
                place.sequence = None
                said.append((sequence, None))
        return said

    def _join(self) -> None:
        """Waiting texts take the free place that has most of their prompt, else the one that was free longest."""
        while self.waiting:
            free = [place for place in self.places if place.sequence is None]
            if not free:
                return
            sequence = self.waiting.popleft()
            place = max(free, key=lambda p: (p.would_keep(sequence), -p.used, -p.seq))
            place.sequence, place.used = sequence, self.steps
            if not sequence.reuses:
                place.slot.go_back(0)
            sequence.reuse(place.slot.begin(sequence.tokens))

    def _parts(self) -> list[Part]:
        """What the next batch computes. Drafts have what room the last tokens of all texts leave."""
        busy = [(place, place.sequence) for place in self.places if place.sequence is not None]
        running = [(p, s) for p, s in busy if len(s.pending) == 1]
        prompts = sorted(((p, s) for p, s in busy if len(s.pending) > 1), key=lambda ps: ps[0].used)
        left, parts = self.n_batch, list[Part]()
        spare = left - len(running)
        for place, sequence in (*running, *prompts):
            tokens = sequence.pending[:left]
            if not tokens:
                break
            place.stop = place.slot.next_stop(len(sequence.pending), sequence.points)
            if place.stop:  # as Slot.prefill has it
                tokens = sequence.pending[: -place.stop][:left]
            whole, draft = len(tokens) == len(sequence.pending), list[int]()
            if sequence.drafter is not None and sequence.ends and whole and spare > 0 and place.slot.rewinds:
                draft = sequence.draft(min(spare, place.slot.room - len(tokens)))
                spare -= len(draft)
            parts.append(Part(place, [*tokens, *draft], whole, draft))
            left -= len(tokens) + len(draft)
        return parts

    def _compute(self, parts: list[Part]) -> NDArray[np.float32]:
        if all(len(part.tokens) == 1 and part.whole for part in parts):  # in the order of their numbers, as places are
            ends = [part.place.slot.context.n_past for part in parts]
            batch = Batch.of_each([part.tokens[0] for part in parts], ends, [part.place.seq for part in parts])
        else:
            batch = Batch.join(
                [Batch.of(part.tokens, part.place.slot.context.n_past, part.place.seq, part.outputs) for part in parts]
            )
        start = clock()
        try:
            rows = self.context.decode(batch)
        except BaseException:
            for place, tokens, whole, _ in parts:
                self._advance(place, tokens, 0.0)
                if whole and place.sequence is not None and not place.sequence.pending:
                    self._again(place, place.sequence)
            raise
        took = clock() - start
        for place, tokens, _, _ in parts:
            self._advance(place, tokens, took * len(tokens) / batch.n)
        return rows

    @staticmethod
    def _again(place: Place, sequence: Sequence) -> None:
        """The logits after the last token were lost: it is computed once more, or what memory cannot go back without."""
        slot = place.slot
        there = min(len(slot.tokens), len(sequence.tokens))
        sequence.pending = sequence.tokens[slot.go_back(there - 1) :]

    def _advance(self, place: Place, tokens: list[int], seconds: float) -> None:
        """The slot has what of these tokens was completed."""
        slot, sequence = place.slot, place.sequence
        assert sequence is not None
        done = slot.context.n_past - (len(slot.tokens) - slot.forgotten)
        slot.tokens += tokens[:done]
        timings = sequence.timings
        if sequence.ends:
            timings.eval += seconds
            timings.n_eval += done
        else:
            timings.prompt += seconds
            timings.n_prompt += done
        del sequence.pending[:done]
        if done and place.stop and len(sequence.pending) == place.stop:
            slot.checkpoints.mark()

    def _push(self, parts: list[Part], rows: NDArray[np.float32]) -> list[tuple[Sequence, Piece | None]]:
        said: list[tuple[Sequence, Piece | None]] = []
        at = 0
        for place, _, _, draft in [part for part in parts if part.whole]:
            mine = rows[at : at + 1 + len(draft)]
            at += len(mine)
            sequence = place.sequence
            assert sequence is not None
            if sequence.finish is not None:  # no token is wanted: the prompt was all
                place.sequence = None
                said.append((sequence, None))
                continue
            try:
                said.extend((sequence, piece) for piece in sequence.check(draft, mine))
            except (SamplerError, GrammarError) as reason:  # the others' rows are not to be lost
                sequence.fail(reason)
                said.append((sequence, None))
            if draft:
                place.slot.go_back(min(len(place.slot.tokens), len(sequence.tokens) - len(sequence.pending)))
            if sequence.finish is not None:
                place.sequence = None
        return said
