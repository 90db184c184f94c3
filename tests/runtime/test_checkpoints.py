"""Memories that cannot go back to any token: a slot begins at a checkpoint, or anew, and the text is the same."""

from typing import Any

import pytest
from fake_context import Bytes, FakeContext, ForgetfulContext, ForgetfulSequences, Greedy
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.runtime.batcher import Batcher
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Sequence
from pyggml.runtime.slot import MOST_CHECKPOINTS, Slot


def run(slot: Slot, prompt: bytes, n: int = 3) -> Sequence:
    sequence = Sequence(prompt, Greedy(), Bytes(), max_tokens=n)
    list(generate(slot, sequence))
    return sequence


def slot_of(context: ForgetfulContext, kind: type[Slot] = Slot, **options: Any) -> Slot:
    slot = kind(context, memory=context, **options)  # type: ignore[arg-type]
    assert slot.marks
    context.calls.clear()
    return slot


def test_a_prompt_is_answered_again_from_its_last_token() -> None:
    context = ForgetfulContext(64)
    slot = slot_of(context)
    first = run(slot, b"abcdef")
    assert [call for call in context.calls if call[0] != "prepare"][:3] == [
        ("decode", 5),
        ("checkpoint", 5),
        ("decode", 1),
    ]
    context.calls.clear()
    again = run(slot, b"abcdef")
    assert again.answer == first.answer and again.n_reused == 5 and ("restore", 5) in context.calls
    context.calls.clear()
    longer = run(slot, b"abcdefg")
    assert longer.n_reused == 5 and longer.answer == run(Slot(FakeContext(64)), b"abcdefg").answer


def test_a_conversation_that_grows_needs_no_checkpoint() -> None:
    context = ForgetfulContext(64)
    slot = slot_of(context)
    first = run(slot, b"abc")
    context.calls.clear()
    assert run(slot, bytes([*first.tokens, *b"def"])).n_reused == 5
    assert "restore" not in [what for what, _ in context.calls]


def test_without_a_checkpoint_before_it_all_is_computed() -> None:
    context = ForgetfulContext(64)
    slot = slot_of(context)
    run(slot, b"abcdef")
    other = run(slot, b"abxyz")
    assert other.n_reused == 0 and other.answer == run(Slot(FakeContext(64)), b"abxyz").answer


def test_what_can_go_back_makes_no_checkpoint() -> None:
    context = FakeContext(64)
    run(Slot(context), b"abcdef")
    assert context.calls[:2] == [("prepare", 6), ("decode", 6)]


def consistent(slot: Slot, context: FakeContext) -> None:
    kept = slot.n_keep + slot.forgotten if slot.forgotten else 0
    assert context.tokens == slot.tokens[: slot.n_keep if kept else 0] + slot.tokens[kept:]
    assert all(c.data == context.tokens[: c.end] for c in slot._checkpoints)
    assert len(slot._checkpoints) <= MOST_CHECKPOINTS


Turns = list[tuple[int, bytes, int]]
TURNS = st.lists(
    st.tuples(st.integers(0, 12), st.text("ab", min_size=1, max_size=5).map(str.encode), st.integers(0, 6)), max_size=14
)


def agrees(kind: type[Slot], turns: Turns, slack: int, shifts: bool) -> None:
    """Each text goes on from a part of the one before: what is in the context is the text, and alone it is the same."""
    context = ForgetfulContext(48, slack)
    slot = slot_of(context, kind, shifts=shifts, n_keep=2)
    text: list[int] = []
    for n_kept, new, n in turns:
        prompt = bytes([*text[:n_kept], *new]) if n_kept < 12 else bytes([*text, *new])
        if len(prompt) > 40:
            prompt = prompt[:5]
        sequence = run(slot, prompt, n)
        text = sequence.tokens
        consistent(slot, context)
        if not slot.forgotten:
            alone = Sequence(prompt, Greedy(), Bytes(), max_tokens=len(sequence.answer))
            list(generate(Slot(FakeContext(200)), alone))
            assert sequence.answer == alone.answer


@settings(deadline=None, max_examples=60)
@given(TURNS, st.integers(0, 4), st.booleans())
def test_any_order_of_texts(turns: Turns, slack: int, shifts: bool) -> None:
    agrees(Slot, turns, slack, shifts)


class KeepsAll(Slot):
    """A mutant: checkpoints of a text that was left stay."""

    def _rewind(self, n: int) -> int:
        kept = list(self._checkpoints)
        n = super()._rewind(n)
        self._checkpoints = kept
        return n


class Unmoved(Slot):
    """A mutant: checkpoints stay when the context shifts."""

    def make_room(self, n: int) -> bool:
        kept = list(self._checkpoints)
        done = super().make_room(n)
        self._checkpoints = kept
        return done


class GoesBackAnyhow(Slot):
    """A mutant: says that it has gone back where it began anew."""

    def _rewind(self, n: int) -> int:
        super()._rewind(n)
        return n


@pytest.mark.parametrize("mutant", [KeepsAll, Unmoved, GoesBackAnyhow])
def test_mutants_are_caught(mutant: type[Slot]) -> None:
    cases: list[tuple[Turns, int]] = [
        ([(0, b"aaaaa", 3), (2, b"bbbb", 3), (0, b"aaaaa", 3)], 0),
        ([(0, b"abab", 30), (12, b"bb", 30), (12, b"ab", 30), (3, b"a", 2)], 4),
    ]
    for turns, slack in cases:
        agrees(Slot, turns, slack, True)
    with pytest.raises(AssertionError):
        for turns, slack in cases:
            agrees(mutant, turns, slack, True)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=9).map(str.encode), st.integers(1, 5)), max_size=9),
    st.integers(0, 3),
    st.integers(1, 12),
)
def test_many_texts_whose_memories_cannot_go_back(wanted: list[tuple[bytes, int]], slack: int, n_batch: int) -> None:
    context: Any = ForgetfulSequences(64, 3, slack)
    batcher = Batcher(context, n_batch)
    texts = [Sequence(prompt, Greedy(), Bytes(), max_tokens=n) for prompt, n in wanted]
    for text in texts:
        batcher.add(text)
    while not batcher.idle:
        batcher.step()
        for place in batcher.places:
            consistent(place.slot, context.each[place.seq])
    for text, (prompt, n) in zip(texts, wanted, strict=True):
        assert text.answer == run(Slot(FakeContext(64)), prompt, n).answer


def test_a_batcher_answers_a_prompt_again_from_its_last_token() -> None:
    context: Any = ForgetfulSequences(64, 2)
    batcher, reused = Batcher(context, 4), []
    for _ in range(2):
        text = Sequence(b"abcdefg", Greedy(), Bytes(), max_tokens=3)
        batcher.add(text)
        while not batcher.idle:
            batcher.step()
        reused.append((text.n_reused, bytes(text.answer)))
    assert [n for n, _ in reused] == [0, 6] and reused[0][1] == reused[1][1]
