"""Memories that cannot go back to any token: a slot begins at a checkpoint, or anew, and the text is the same."""

from typing import Any

import pytest
from fake_context import Bytes, FakeContext, ForgetfulContext, ForgetfulSequences, Greedy
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.errors import ContextError
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.checkpoints import CheckpointRule, Checkpoints
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Sequence
from pyggml.runtime.slot import Slot

MOST = 3


def run(slot: Slot, prompt: bytes, n: int = 3) -> Sequence:
    sequence = Sequence(prompt, Greedy(), Bytes(), max_tokens=n)
    list(generate(slot, sequence))
    return sequence


def slot_of(context: ForgetfulContext, kind: type[Slot] = Slot, **options: Any) -> Slot:
    slot = kind(context, memory=context, **options)  # type: ignore[arg-type]
    assert slot.checkpoints.active
    return slot


TEXT = b"abcdefghijklmnopqrstuvwx"  # 24 tokens; micro-batches have 8


def computed(context: FakeContext) -> int:
    """Tokens since the last call."""
    n = sum(n for what, n in context.calls if what == "decode")
    context.calls.clear()
    return n


def test_checkpoints_are_near_the_end_of_a_prompt() -> None:
    """As llama-server makes them: 4 tokens before the end, and a micro-batch before that."""
    context = ForgetfulContext(64)
    run(slot_of(context), TEXT)
    calls = [call for call in context.calls if call[0] != "prepare"]
    assert calls[:5] == [("decode", 12), ("checkpoint", 12), ("decode", 8), ("checkpoint", 20), ("decode", 4)]


@pytest.mark.parametrize(
    ("prompt", "n_reused"),
    [
        (TEXT, 20),
        (TEXT + b"yz", 20),
        (TEXT[:20] + b"zz", 20),
        (TEXT[:19] + b"zz", 12),
        (TEXT[:12] + b"zz", 12),
        (TEXT[:11] + b"zz", 0),
    ],
)
def test_a_prompt_that_begins_alike_is_computed_from_a_checkpoint_on(prompt: bytes, n_reused: int) -> None:
    context = ForgetfulContext(64)
    slot = slot_of(context)
    run(slot, TEXT)
    computed(context)
    assert slot.would_keep(prompt) == n_reused
    again = run(slot, prompt)
    assert again.n_reused == n_reused and computed(context) == len(prompt) - n_reused + 2  # the answer's last is not
    assert again.answer == run(Slot(FakeContext(64)), prompt).answer


def test_a_conversation_that_grows_needs_no_checkpoint() -> None:
    context = ForgetfulContext(64)
    slot = slot_of(context)
    first = run(slot, b"abc")
    context.calls.clear()
    assert run(slot, bytes([*first.tokens, *b"def"])).n_reused == 5
    assert "restore" not in [what for what, _ in context.calls]


def test_messages_of_a_user_are_places_to_go_back_to() -> None:
    """The last one always, others where they are far from the checkpoint before."""
    for min_step, ends in ((100, [2, 18, 20]), (4, [2, 7, 18, 20])):
        context = ForgetfulContext(64)
        slot = slot_of(context, rule=CheckpointRule(min_step=min_step))
        slot.context.n_ubatch = 100  # type: ignore[misc]
        slot.checkpoints = Checkpoints(context, 0, CheckpointRule(min_step=min_step), 100)  # type: ignore[arg-type]
        sequence = Sequence(TEXT, Greedy(), Bytes(), max_tokens=3, messages=[2, 7, 18])
        list(generate(slot, sequence))
        assert [c.end for c in slot.checkpoints.kept] == ends
        other = Sequence(TEXT[:18] + b"zzzz", Greedy(), Bytes(), max_tokens=3)
        list(generate(slot, other))
        assert other.n_reused == 18


def test_only_so_many_are_kept() -> None:
    """Those near another one go first, but for those of the prompt that is computed; then the oldest."""
    context = ForgetfulContext(200)
    slot = slot_of(context, rule=CheckpointRule(most=4, min_step=30))
    text, ends = TEXT, []
    for _ in range(4):
        text = bytes(run(slot, text).tokens) + TEXT[:10]
        ends.append([c.end for c in slot.checkpoints.kept])
    assert ends == [[12, 20], [12, 20, 33], [12, 46], [12, 46, 59]]


def test_of_one_prompt_the_oldest_go() -> None:
    context = ForgetfulContext(200)
    slot = slot_of(context, rule=CheckpointRule(most=2, min_step=0))
    list(generate(slot, Sequence(TEXT, Greedy(), Bytes(), max_tokens=1, messages=[2, 5, 7])))
    assert [c.end for c in slot.checkpoints.kept] == [12, 20]


def test_none_are_made_where_none_are_wanted() -> None:
    context: Any = ForgetfulContext(64)
    run(Slot(context, memory=context, rule=CheckpointRule(0)), TEXT)
    assert [what for what, _ in context.calls] == ["prepare", "decode", "decode", "decode"]


def test_without_a_checkpoint_before_it_all_is_computed() -> None:
    context = ForgetfulContext(64)
    slot = slot_of(context)
    run(slot, TEXT)
    other = run(slot, b"abxyz")
    assert other.n_reused == 0 and other.answer == run(Slot(FakeContext(64)), b"abxyz").answer


def test_what_can_go_back_makes_no_checkpoint() -> None:
    context = FakeContext(64)
    run(Slot(context), b"abcdef")
    assert context.calls[:2] == [("prepare", 6), ("decode", 6)]


def consistent(slot: Slot, context: FakeContext) -> None:
    kept = slot.n_keep + slot.forgotten if slot.forgotten else 0
    assert context.tokens == slot.tokens[: slot.n_keep if kept else 0] + slot.tokens[kept:]
    assert all(c.data == context.tokens[: c.end] for c in slot.checkpoints.kept)
    assert len(slot.checkpoints.kept) <= MOST


Turns = list[tuple[int, bytes, int]]
TURNS = st.lists(
    st.tuples(st.integers(0, 24), st.text("ab", min_size=1, max_size=14).map(str.encode), st.integers(0, 6)),
    max_size=14,
)


def agrees(kind: type[Slot], turns: Turns, slack: int, shifts: bool) -> None:
    """Each text goes on from a part of the one before: what is in the context is the text, and alone it is the same."""
    context = ForgetfulContext(48, slack)
    slot = slot_of(context, kind, shifts=shifts, n_keep=2, rule=CheckpointRule(MOST, min_step=5))
    text: list[int] = []
    for n_kept, new, n in turns:
        prompt = bytes([*text[:n_kept], *new]) if n_kept < 24 else bytes([*text, *new])
        if len(prompt) > 40:
            prompt = prompt[:5]
        would_keep = slot.would_keep(prompt)
        sequence = run(slot, prompt, n)
        assert sequence.n_reused == would_keep
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
        kept = list(self.checkpoints.kept)
        n = super()._rewind(n)
        self.checkpoints.kept = kept
        return n


class Unmoved(Slot):
    """A mutant: checkpoints stay when the context shifts."""

    def make_room(self, n: int) -> bool:
        kept = list(self.checkpoints.kept)
        done = super().make_room(n)
        self.checkpoints.kept = kept
        return done


class GoesBackAnyhow(Slot):
    """A mutant: says that it has gone back where it began anew."""

    def _rewind(self, n: int) -> int:
        super()._rewind(n)
        return n


@pytest.mark.parametrize("mutant", [KeepsAll, Unmoved, GoesBackAnyhow])
def test_mutants_are_caught(mutant: type[Slot]) -> None:
    cases: list[tuple[Turns, int]] = [
        ([(0, b"aaaaaaaaa", 3), (2, b"bbbbbbbb", 3), (0, b"aaaaaaaaa", 3)], 0),
        ([(0, b"ababababab", 20), (24, b"bbbbbbbb", 30), (24, b"ab", 30), (3, b"a", 2)], 4),
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


def test_a_batcher_computes_a_prompt_from_a_checkpoint_on_and_gives_it_the_place_that_has_one() -> None:
    context: Any = ForgetfulSequences(64, 3)
    batcher, reused = Batcher(context, 5), []
    for prompt in (TEXT, TEXT[:21] + b"zz", b"xyz", TEXT):
        text = Sequence(prompt, Greedy(), Bytes(), max_tokens=3)
        batcher.add(text)
        while not batcher.idle:
            batcher.step()
        n = sum(computed(each) for each in context.each)
        assert n == len(prompt) - text.n_reused + 2
        assert text.answer == run(Slot(FakeContext(64)), prompt).answer
        reused.append(text.n_reused)
    assert reused == [0, 20, 0, 20]


def test_a_memory_that_cannot_shift_is_refused() -> None:
    context = ForgetfulContext(64)
    context.why_no_shift = "a state is a state"
    with pytest.raises(ContextError, match=r"^no context shift with this model: a state is a state$"):
        slot_of(context, shifts=True)
