"""The loop: what is computed and when, what of a prompt is there already, and what is left after an error."""

from typing import Any

import pytest
from fake_context import Bytes, FakeContext, Greedy, Script

from pyggml.runtime.generate import NoRoomError, generate
from pyggml.runtime.sequence import Finish, Sequence
from pyggml.runtime.slot import Slot, n_kept, reusable


def run(slot: Slot, prompt: bytes, says: bytes | None = None, n: int = 4, **options: Any) -> Sequence:
    sampler = Greedy() if says is None else Script(says)
    sequence = Sequence(prompt, sampler, Bytes(), max_tokens=n)
    list(generate(slot, sequence, **options))
    return sequence


def decoded(context: FakeContext) -> list[int]:
    return [n for what, n in context.calls if what == "decode"]


def test_the_token_chosen_last_is_not_computed() -> None:
    context = FakeContext(64)
    sequence = run(Slot(context), b"abc")
    assert sequence.finish is Finish.LENGTH and decoded(context) == [3, 1, 1, 1]
    assert (sequence.timings.n_prompt, sequence.timings.n_eval, sequence.timings.n_sample) == (3, 3, 4)
    assert context.tokens == sequence.tokens[:-1] and context.calls[0] == ("prepare", 3)


def test_each_token_is_computed_when_the_next_is_asked_for() -> None:
    context = FakeContext(64)
    pieces = generate(Slot(context), Sequence(b"abc", Greedy(), Bytes(), max_tokens=4))
    assert context.calls == []
    next(pieces)
    assert decoded(context) == [3]
    next(pieces)
    assert decoded(context) == [3, 1]


def test_a_prompt_is_computed_even_if_no_token_is_wanted() -> None:
    context = FakeContext(64)
    assert run(Slot(context), b"abc", n=0).answer == [] and decoded(context) == [3]


def test_what_is_there_is_not_computed_again() -> None:
    context = FakeContext(64)
    slot = Slot(context)
    first = run(slot, b"abcdef")
    context.calls.clear()
    again = run(slot, b"abcxyz")
    assert again.n_reused == 3 and decoded(context) == [3, 1, 1, 1]
    assert again.answer == run(Slot(FakeContext(64)), b"abcxyz").answer
    context.calls.clear()
    assert run(slot, b"abcdef").answer == first.answer and decoded(context)[0] == 3
    context.calls.clear()
    run(slot, b"ab", n=1)
    assert decoded(context) == [1]  # the logits after its last token are to be had only by computing it


def test_tokens_may_follow_what_is_there() -> None:
    context = FakeContext(64)
    slot = Slot(context)
    run(slot, b"abc", says=b"xyz", n=2)
    run(slot, b"de", says=b"xyz", n=2, begin=False)
    assert bytes(context.tokens) == b"abcxdex" == bytes(slot.tokens)


def test_a_full_context_ends_it() -> None:
    context = FakeContext(8)
    sequence = run(Slot(context), b"abc", n=-1)
    assert sequence.finish is Finish.FULL and context.n_past == 7 and len(sequence.answer) == 5
    with pytest.raises(NoRoomError, match="8 tokens do not fit into a context of 8"):
        run(Slot(FakeContext(8)), b"abcdefgh")
    whole = FakeContext(8)
    assert run(Slot(whole, spare=0), b"abcdefgh", n=1).finish is Finish.LENGTH and whole.n_past == 8


def test_a_context_that_shifts_goes_on() -> None:
    context = FakeContext(16)
    slot = Slot(context, shifts=True, n_keep=3)
    sequence = run(slot, b"abcdefgh", n=40)
    assert sequence.finish is Finish.LENGTH and bytes(context.tokens[:3]) == b"abc" and slot.forgotten > 0
    assert slot.tokens == sequence.tokens[:-1] and context.tokens[3:] == slot.tokens[3 + slot.forgotten :]


def test_parts_of_a_prompt() -> None:
    context = FakeContext(64)
    run(Slot(context, n_batch=4), b"abcdefghij", n=1)
    assert decoded(context) == [4, 4, 2]


def test_after_an_error_only_what_was_completed_is_there() -> None:
    context = FakeContext(64, fails_at=5)
    slot = Slot(context, n_batch=2)
    with pytest.raises(RuntimeError, match="a device failed"):
        run(slot, b"abcdefgh")
    assert bytes(slot.tokens) == b"abcde" == bytes(context.tokens)
    context.fails_at = None
    assert run(slot, b"abcdefgh").n_reused == 5


def test_what_is_reused_and_kept() -> None:
    assert [reusable(a, b"abc") for a in (b"", b"a", b"ab", b"abc", b"abcd", b"x")] == [0, 0, 1, 2, 3, 0]
    assert [n_kept(keep, 20, True) for keep in (0, 5, 20, 21, -1)] == [1, 6, 21, 20, 20]
