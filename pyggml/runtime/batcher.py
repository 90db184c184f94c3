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
from pyggml.runtime.draft_pace import DraftPace
from pyggml.runtime.drafter import Drafter, draft_size, draft_together, lacking
from pyggml.runtime.encoding import why_not
from pyggml.runtime.idle_prompts import IdlePrompts
from pyggml.runtime.places import Place, Places
from pyggml.runtime.sequence import Finish, Piece, Sequence
from pyggml.runtime.timings import clock

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

Outputs = Literal["last", "all", "none"]


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

    n_batch      tokens that a step computes at most
    prompt_room  and how many of them are of prompts at most, which drafts leave free; None: prompts get what drafts leave
    pace     whether drafts are made; None: always
    shifts   whether a text whose sequence is full goes on without its oldest tokens behind the first `n_keep`
    rule     checkpoints of each sequence, where the context cannot go back to any token
    similarity, idle, clears, chunk  as Places has them
    """

    def __init__(
        self,
        context: Context,
        n_batch: int = 2048,
        *,
        shifts: bool = False,
        n_keep: int = 0,
        rule: CheckpointRule = CheckpointRule(),  # noqa: B008, it is frozen
        similarity: float = 0.0,
        idle: IdlePrompts | None = None,
        clears: bool = False,
        chunk: int = 0,
        pace: DraftPace | None = None,
    ) -> None:
        """Raises ContextError where texts are to shift in a context that cannot."""
        assert n_batch >= 1, n_batch
        self.context = context
        self.n_batch = n_batch
        self.prompt_room: int | None = None
        self.pace = pace
        self._places = Places(context, shifts, n_keep, rule, similarity, idle, clears, chunk)
        self.places = self._places.all
        self.waiting: deque[Sequence] = deque()
        self._held: list[Sequence] = []  # that had to leave their place, until another text ends
        self._ended = False  # one has since the last step
        self._turn = 0  # of sets of adapters
        self.steps = 0

    def add(self, sequence: Sequence) -> None:
        """The text waits until a sequence of the context is free. Raises ContextError for a prompt that never fits."""
        sequence.answer_to(self.context.start_token)
        if sequence.source and (why := why_not(self.context, len(sequence.source))):
            raise ContextError(why)
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
        return not self.waiting and not self.active and not self._held

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, without those in which graphs were made of shapes that had not been seen: a model's, and that of one that guesses."""
        if self.pace is not None:
            return self.pace.clock
        return lambda: clock() - self.context.seconds_for_graphs

    @property
    def stored(self) -> Places:
        """What decides which place a text gets, and what it finds there."""
        return self._places

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
            chosen = self._push(parts, rows)
            if self.pace is not None:
                self.pace.end(sum(piece is not None for _, piece in chosen))
            return said + chosen

    def _make_room(self) -> None:
        """Forget what an ended text has left behind, the oldest first; where there is none, the text that came last waits until
        another ends, and one that is alone ends."""
        left = [place for place in self.places if place.sequence is None and place.slot.tokens]
        if left:
            min(left, key=lambda p: p.used).slot.go_back(0)
            return
        busy = [place for place in self.places if place.sequence is not None]
        place = max(busy, key=lambda p: (not p.slot.forgotten, p.used, p.seq))
        sequence = place.sequence
        assert sequence is not None, "no text is under way"
        if len(busy) == 1 or place.slot.forgotten:
            sequence.finish = Finish.FULL
            return
        place.sequence = None
        place.slot.go_back(0)
        sequence.pending = list(sequence.tokens)
        self._held.append(sequence)

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
            sequence.n_shifted = place.slot.forgotten
            if sequence.finish is not None:
                self._end(place)
                said.append((sequence, None))
        for group in (self._held, self.waiting):
            for sequence in [one for one in group if one.cancelled]:
                group.remove(sequence)
                sequence.finish = sequence.finish or Finish.CANCELLED
                said.append((sequence, None))
        return said

    def _end(self, place: Place) -> None:
        place.sequence, self._ended = None, True

    def drop(self) -> list[Sequence]:
        """Texts that have no place: none of them is computed any more."""
        left = [*self._held, *self.waiting]
        self._held.clear()
        self.waiting.clear()
        return left

    def _join(self) -> None:
        """Waiting texts take places that are free."""
        if self._held and (self._ended or not self.active):
            self.waiting.extendleft(reversed(self._held))
            self._held.clear()
        self._ended = False
        left: deque[Sequence] = deque()
        self.waiting = deque(
            sorted(self.waiting, key=lambda s: s.wants is None)
        )  # who wants one place gets it, not another
        while self.waiting:
            sequence = self.waiting.popleft()
            place = self._places.free_for(sequence)
            if place is None:
                left.append(sequence)
                continue
            self._places.give(place, sequence, self.steps)
            if place.drafter is not None and sequence.drafter is None:
                sequence.drafter = place.drafter
        self.waiting = left

    def _parts(self) -> list[Part]:
        """What the next batch computes. Drafts have what room the last tokens of all texts leave."""
        busy = self._of_one_set([(place, place.sequence) for place in self.places if place.sequence is not None])
        running = [(p, s) for p, s in busy if len(s.pending) == 1]
        prompts = sorted(((p, s) for p, s in busy if len(s.pending) > 1), key=lambda ps: ps[0].used)
        left, parts = self.n_batch, list[Part]()
        for_prompts = left if self.prompt_room is None else self.prompt_room
        kept_free = 0 if self.prompt_room is None else min(for_prompts, sum(len(s.pending) for _, s in prompts))
        drafts = self._drafts(running, left - len(running) - kept_free, not prompts)
        left -= sum(map(len, drafts.values()))
        for place, sequence in (*running, *prompts):
            single = len(sequence.pending) == 1
            tokens = sequence.pending[: left if single else max(0, min(left, for_prompts))]
            if not tokens:
                break
            place.stop = place.slot.next_stop(len(sequence.pending), sequence.points)
            if place.stop:  # as Slot.prefill has it
                tokens = sequence.pending[: -place.stop][: len(tokens)]
            draft = drafts.get(place, [])
            parts.append(Part(place, [*tokens, *draft], len(tokens) == len(sequence.pending), draft))
            left -= len(tokens)
            for_prompts -= 0 if single else len(tokens)
        return parts

    def _drafts(self, running: list[tuple[Place, Sequence]], spare: int, alone: bool) -> dict[Place, list[int]]:
        """Guesses at what follows the last token of each text, `spare` tokens in all: all drafters are asked at once, so that a model
        that guesses for several texts computes them together. `alone`: no prompts are computed beside."""
        asked: list[tuple[Place, Drafter, Sequence, int]] = []
        for place, sequence in running:
            if sequence.drafter is not None and sequence.ends and place.slot.rewinds:
                most = sequence.guesses_wanted(min(spare, place.slot.room - 1))
                if most:
                    asked.append((place, sequence.drafter, sequence, most))
        found: dict[Place, list[int]] = {}
        pace = self.pace
        if pace is not None:
            lacks = sum(lacking(drafter, sequence.tokens) for _, drafter, sequence, _ in asked)
            if not pace.begin(len(running), lacks, alone):
                return found
        guesses = draft_together([(drafter, sequence.tokens, most) for _, drafter, sequence, most in asked])
        for (place, _, _, most), guess in zip(asked, guesses, strict=True):
            found[place] = guess[: draft_size(min(most, spare, len(guess)))]
            spare -= len(found[place])
        if pace is not None:
            pace.drafted(any(found.values()))
        return found

    def _of_one_set(self, busy: list[tuple[Place, Sequence]]) -> list[tuple[Place, Sequence]]:
        """Texts that the same adapters compute; another set of them the next time."""
        sets = list(dict.fromkeys(sequence.adapters for _, sequence in busy))
        if not sets or sets == [None]:
            return busy
        self._turn = (self._turn + 1) % len(sets)
        wanted = sets[self._turn]
        if wanted is not None:
            self.context.set_adapters([(applied.adapter, applied.scale) for applied in wanted])
        return [(place, sequence) for place, sequence in busy if sequence.adapters == wanted]

    def _compute(self, parts: list[Part]) -> NDArray[np.float32]:
        for place in (part.place for part in parts):
            self._encode(place)
        if all(len(part.tokens) == 1 and part.whole for part in parts):  # in the order of their numbers, as places are
            ends = [part.place.slot.context.n_past for part in parts]
            batch = Batch.of_each([part.tokens[0] for part in parts], ends, [part.place.seq for part in parts])
        else:
            batch = Batch.join(
                [
                    Batch.of(
                        part.tokens, part.place.slot.context.n_past, part.place.seq, part.outputs, bool(part.draft)
                    )
                    for part in parts
                ]
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
    def _encode(place: Place) -> None:
        """Read the text that a sequence is about to answer, if it is one."""
        sequence = place.sequence
        assert sequence is not None
        begun = clock()
        if read := place.slot.encode(sequence.source):
            sequence.timings.prompt += clock() - begun
            sequence.timings.n_prompt += read

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
                self._end(place)
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
                self._end(place)
        return said
