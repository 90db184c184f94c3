"""Drafts change when tokens are computed, and no token: whatever is guessed, the text is the one without."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fake_context import EOG, Argmax, Bytes, FakeContext, ForgetfulContext, Greedy, row
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import N_VOCAB

from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.drafter import DRAFT_SIZES, draft_size
from pyggml.runtime.drafts import FIRST, NgramDrafter
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Finish
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.slot import Slot
from pyggml.runtime.stops import StopTexts


class Oracle:
    """Guesses right, but for each `wrong`-th token."""

    def __init__(self, n: int = 5, wrong: int = 0) -> None:
        self.n, self.wrong, self.made, self.counts = n, wrong, 0, list[tuple[int, int]]()

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        text = list(tokens)
        for _ in range(min(self.n, most)):
            self.made += 1
            token = Argmax().sample(row(text))
            text.append(token if not self.wrong or self.made % self.wrong else 1)
        return text[len(tokens) :]

    def kept(self, drafted: int, kept: int) -> None:
        self.counts.append((drafted, kept))


class Same:
    """Guesses these numbers of tokens, all the same token."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = iter(sizes)

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        return [Argmax().sample(row(tokens))] * min(next(self.sizes, 0), most)

    def kept(self, drafted: int, kept: int) -> None:
        assert 0 <= kept <= drafted and drafted


def said(context: FakeContext, n: int, drafter: Any = None, **options: Any) -> Text:
    text = Text(b"abc", Argmax(), Bytes(), max_tokens=n, drafter=drafter, **options)
    list(generate(Slot(context), text))
    return text


def test_guesses_that_are_right_are_computed_together() -> None:
    drafter, context = Oracle(), FakeContext(64)
    text = said(context, 20, drafter)
    assert text.answer == said(FakeContext(64), 20).answer and text.finish is Finish.LENGTH
    assert [n for what, n in context.calls if what == "decode"] == [3, 6, 6, 6, 1]
    assert context.tokens == text.tokens[:-1] and (text.n_drafted, text.n_kept) == (15, 15)
    assert drafter.counts == [(5, 5)] * 3


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 40), st.integers(0, 6))
def test_whatever_is_guessed(sizes: list[int], n: int, wrong: int) -> None:
    plain = said(FakeContext(64), n)
    for drafter in (Same(sizes), Oracle(4, wrong)):
        context = FakeContext(64)
        text = said(context, n, drafter)
        assert text.answer == plain.answer and text.data == plain.data and text.finish is plain.finish
        assert context.tokens == text.tokens[: len(context.tokens)] and len(context.tokens) >= len(text.tokens) - 1


@pytest.mark.parametrize("n_ctx", range(5, 20))
def test_a_context_that_becomes_full(n_ctx: int) -> None:
    plain, text = said(FakeContext(n_ctx), 40), said(FakeContext(n_ctx), 40, Oracle(6))
    assert text.answer == plain.answer and text.finish is plain.finish is Finish.FULL


def test_a_stop_text_among_guesses() -> None:
    plain = said(FakeContext(64), 20)
    stop = bytes(plain.answer[6:8])
    ends = [said(FakeContext(64), 20, drafter, stops=StopTexts([stop])) for drafter in (None, Oracle(9))]
    assert ends[0].data == ends[1].data and ends[0].finish is ends[1].finish is Finish.STOP


def test_a_token_that_ends_the_text_among_guesses() -> None:
    class Ends(Greedy):
        def sample(self, logits: Any) -> int:
            token = super().sample(logits)
            return EOG if token % 7 == 0 else token

    answers = []
    for drafter in (None, Oracle(9)):
        text = Text(b"abc", Ends(), Bytes(), max_tokens=50, drafter=drafter)
        list(generate(Slot(FakeContext(64)), text))
        assert text.finish is Finish.EOG
        answers.append(text.answer)
    assert answers[0] == answers[1]


def test_whoever_takes_no_more_leaves_what_was_taken() -> None:
    context = FakeContext(64)
    slot, text = Slot(context), Text(b"abc", Argmax(), Bytes(), max_tokens=30, drafter=Oracle(8))
    pieces = generate(slot, text)
    for _ in range(4):
        next(pieces)
    pieces.close()
    assert len(text.answer) == 4 and slot.tokens == context.tokens == text.tokens[: len(slot.tokens)]
    assert len(slot.tokens) >= 6


def test_a_memory_that_cannot_go_back_gets_no_drafts() -> None:
    context = ForgetfulContext(64)
    text = Text(b"abc", Argmax(), Bytes(), max_tokens=9, drafter=Oracle(8))
    list(generate(Slot(context, memory=context), text))  # type: ignore[arg-type]
    assert text.n_drafted == 0 and text.answer == said(FakeContext(64), 9).answer


def test_a_guess_too_many_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: what was guessed counts as chosen."""

    def check(self: Text, draft: Sequence[int], rows: Any) -> Iterator[Any]:
        for _, logits in zip((*draft, None), rows, strict=True):
            self.pending = []
            yield self.push(logits)

    monkeypatch.setattr(Text, "check", check)
    with pytest.raises(AssertionError):
        test_whatever_is_guessed()


# ---- where guesses come from


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 4))
def test_what_followed_the_last_time(tokens: list[int], n: int) -> None:
    drafter, found = NgramDrafter(n, 6), list[int]()
    for end in range(1, len(tokens) + 1):
        found = drafter.draft(tokens[:end], 6)
    key = tokens[-n:]
    starts = [i for i in range(n, len(tokens)) if tokens[i - n : i] == key]
    wanted = tokens[starts[-1] : starts[-1] + 6] if starts and len(tokens) > n else []
    assert found == wanted


def test_how_many_are_guessed_goes_by_how_many_were_kept() -> None:
    drafter = NgramDrafter(2, 48)
    text = list(range(40)) * 3
    assert len(drafter.draft(text, 99)) == FIRST
    drafter.kept(7, 7)
    assert len(drafter.draft(text, 99)) == 15 and len(drafter.draft(text, 5)) == 5
    drafter.kept(15, 3)
    assert len(drafter.draft(text, 99)) == 4
    each = NgramDrafter(2, 48, per_key=True)
    each.draft(text, 99)
    each.kept(8, 0)
    assert len(each.draft(text, 99)) == 2 and len(each.draft([*text, 0, 1], 99)) == FIRST


def test_drafts_have_few_lengths() -> None:
    assert [draft_size(n) for n in (0, 1, 4, 6, 8, 15, 22, 48, 1000)] == [0, 1, 3, 5, 7, 15, 15, 47, 63]
    text = Text([1, 2], Argmax(), max_tokens=100, drafter=Oracle(22))
    assert len(text.draft(50)) == 15 and len(text.draft(9)) == 7 and len(text.draft(1)) == 1 and text.draft(0) == []
    assert len(DRAFT_SIZES) < 12


def test_several_texts_at_once(draft_models: tuple[Model, Model]) -> None:
    rng = np.random.default_rng(4)
    prompts = [rng.integers(0, N_VOCAB, n).tolist() * 3 for n in (2, 5, 9)]
    found = []
    for drafts in (False, True):
        context = Context(draft_models[0], n_ctx=3 * 256, n_seq_max=3)
        batcher = Batcher(context, 40)
        drafters = [NgramDrafter(1, 8), NgramDrafter(2, 8, per_key=True), None]
        texts = [
            Text(prompt, Argmax(), max_tokens=20 + i, drafter=drafters[i] if drafts else None)
            for i, prompt in enumerate(prompts)
        ]
        for text in texts:
            batcher.add(text)
        pieces = 0
        while not batcher.idle:
            pieces += sum(piece is not None for _, piece in batcher.step())
        assert pieces == 63 and all(text.finish is Finish.LENGTH for text in texts)
        found.append([text.answer for text in texts])
        if drafts:
            assert any(text.n_drafted for text in texts)
        context.close()
    assert found[0] == found[1]
