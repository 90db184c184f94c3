"""The loop of a generation: compute the prompt, choose a token, compute it, until the text has ended.

Owns the order of these steps and their times. What of the prompt is there already and when tokens are forgotten is the
slot's (slot.py), which token comes next and when it is enough the sequence's (sequence.py).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyggml.errors import ContextError
from pyggml.runtime.drafter import lacking
from pyggml.runtime.sequence import Finish, Piece, Sequence
from pyggml.runtime.slot import Slot
from pyggml.runtime.timings import clock

if TYPE_CHECKING:
    from pyggml.runtime.draft_pace import DraftPace
    from pyggml.runtime.prompt_cache import PromptCache


class NoRoomError(ContextError):
    """A prompt that does not fit into the context."""


def generate(
    slot: Slot,
    sequence: Sequence,
    *,
    cache: "PromptCache | None" = None,
    begin: bool = True,
    pace: "DraftPace | None" = None,
) -> Iterator[Piece]:
    """The pieces of `sequence`, each as soon as its token is chosen; afterwards `sequence.finish` says why it ended.

    cache  what a file holds of the prompt is taken from it, and the prompt, once computed, is kept there
    begin  the sequence's tokens replace what is in the slot, but for what both begin with; else they follow it
    pace   whether drafts are made; None: always

    A token is computed when the next piece is asked for, or with a draft that it is in. The prompt is computed even if no token is wanted.
    Raises NoRoomError for a prompt that does not fit, and what devices and samplers raise.
    """
    timings = sequence.timings
    start = clock()
    if begin:
        sequence.answer_to(slot.context.start_token)
        if read := slot.encode(sequence.source):
            timings.prompt += clock() - start
            timings.n_prompt += read
    if cache is not None:
        cache.resume(slot, sequence.tokens)
    if begin:
        sequence.reuse(slot.begin(sequence.tokens))
    n = len(sequence.pending)
    slot.prepare(n)
    start = clock()
    logits = slot.prefill(sequence.pending, sequence.points)
    timings.prompt += clock() - start
    timings.n_prompt += n
    if logits is None:
        raise NoRoomError(f"{n} tokens do not fit into a context of {slot.context.n_ctx}")
    if cache is not None:
        cache.keep_prompt(slot, sequence.tokens)
    while sequence.finish is None:
        if sequence.cancelled:
            sequence.finish = Finish.CANCELLED
            return
        if logits is not None:
            yield sequence.push(logits)
            if sequence.finish is not None:
                return
        if not slot.make_room(len(sequence.pending)):
            sequence.finish = Finish.FULL
            return
        draft = _draft(slot, sequence, pace)
        start = clock()
        if not draft:
            logits = slot.decode(sequence.pending)
            timings.eval += clock() - start
            timings.n_eval += 1
            assert logits is not None, "there was room"
            if pace is not None and sequence.drafter is not None and slot.rewinds:
                pace.end(1)
            continue
        rows, logits = slot.verify([*sequence.pending, *draft]), None
        timings.eval += clock() - start
        if pace is not None:
            pace.computed()
        chosen = 0
        try:
            for piece in sequence.check(draft, rows):
                timings.n_eval += 1
                chosen += 1
                yield piece
                if sequence.finish is not None:
                    return
                if sequence.cancelled:
                    sequence.finish = Finish.CANCELLED
                    return
        finally:
            if pace is not None:
                pace.end(chosen)
            slot.go_back(min(len(slot.tokens), len(sequence.tokens) - len(sequence.pending)))


def _draft(slot: Slot, sequence: Sequence, pace: "DraftPace | None") -> list[int]:
    """Guesses at the next tokens, where they can be used and are worth it."""
    if not slot.rewinds or sequence.drafter is None:
        return []
    if pace is None:
        return sequence.draft(slot.room - 1)
    if not pace.begin(1, lacking(sequence.drafter, sequence.tokens)):
        return []
    draft = sequence.draft(slot.room - 1)
    pace.drafted(bool(draft))
    return draft
