"""One text while it is generated: what ends it and in which order, and that sequences do not need a loop of their own."""

import threading
from typing import Any

import numpy as np
import pytest
from fake_context import EOG, Bytes, FakeContext, Greedy, Script, row
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.runtime.generate import generate
from pyggml.runtime.logprobs import log_softmax
from pyggml.runtime.sequence import Finish, Sequence, Status
from pyggml.runtime.slot import Slot
from pyggml.runtime.stops import StopTexts

ROW = np.zeros(256, np.float32)


def said(text: bytes, **options: Any) -> tuple[Sequence, list[Any]]:
    """A sequence that chooses these bytes until it has finished, and its pieces."""
    sequence = Sequence(b"prompt", Script([*text, EOG]), Bytes(), **options)
    pieces = []
    while sequence.finish is None:
        pieces.append(sequence.push(ROW))
    return sequence, pieces


def test_a_token_that_ends_a_text_is_no_part_of_it() -> None:
    sequence, pieces = said(b"ab", special=True)
    assert (sequence.finish, sequence.status) == (Finish.EOG, Status.FINISHED)
    assert bytes(sequence.data) == b"ab" and sequence.tokens == [*b"promptab"] and sequence.answer == [*b"ab"]
    assert [(p.token, p.data, p.settled, p.finish) for p in pieces] == [
        (97, b"a", 1, None),
        (98, b"b", 2, None),
        (EOG, b"<0>", 2, Finish.EOG),
    ]


def test_what_ends_it_first() -> None:
    """A stop text before a rule, a rule before the number of tokens; the end of the text before all of them."""
    stop = StopTexts([b"b"])
    always = lambda sequence, logits: True  # noqa: E731
    assert said(b"ab", max_tokens=2, stops=stop)[0].finish is Finish.STOP
    assert bytes(said(b"ab", max_tokens=2, stops=StopTexts([b"b"]))[0].data) == b"a"
    sequence, _ = said(b"ab", max_tokens=1, stop_when=always)
    assert sequence.finish is Finish.STOP and bytes(sequence.data) == b"a"
    assert said(b"ab", max_tokens=2)[0].finish is Finish.LENGTH
    assert said(b"", max_tokens=1, stop_when=always)[0].finish is Finish.EOG
    assert said(b"ab", max_tokens=0)[0].finish is Finish.LENGTH and said(b"ab", max_tokens=0)[1] == []


def test_without_a_vocabulary_no_token_ends_a_text() -> None:
    sequence = Sequence([5], Script([EOG, EOG]), max_tokens=2)
    assert [sequence.push(ROW).data, sequence.push(ROW).data] == [b"", b""]
    assert sequence.finish is Finish.LENGTH and sequence.answer == [EOG, EOG]


def test_what_may_still_change_is_not_settled() -> None:
    _, pieces = said("x#é".encode(), stops=StopTexts([b"##"]))
    assert [p.settled for p in pieces] == [1, 1, 2, 4, 4]


def test_counts_and_tokens_to_compute() -> None:
    sequence = Sequence([1, 2, 3], Script([7, 8]), n_logprobs=2)
    assert (sequence.pending, sequence.status) == ([1, 2, 3], Status.WAITING)
    sequence.reuse(2)
    assert (sequence.pending, sequence.n_reused, sequence.tokens) == ([3], 2, [1, 2, 3])
    logits = row([1, 2, 3])
    sequence.push(logits)
    assert (sequence.pending, sequence.status, sequence.timings.n_sample) == ([7], Status.RUNNING, 1)
    sequence.extend([9])
    assert sequence.pending == [7, 9] and sequence.tokens == [1, 2, 3, 7, 9]
    best = np.argsort(-logits)[:2].tolist()
    (numbers,) = sequence.logprobs
    assert numbers.value == pytest.approx(float(log_softmax(logits)[7])) and [i for i, _ in numbers.top] == best


def test_more_log_probabilities_than_tokens() -> None:
    sequence = Sequence([1], Script([7]), n_logprobs=1000)
    sequence.push(row([1]))
    assert len(sequence.logprobs[0].top) == 256


def test_cancelled_from_another_thread() -> None:
    context = FakeContext(64)
    sequence = Sequence([1], Greedy(), Bytes())
    pieces = generate(Slot(context), sequence)
    next(pieces)
    thread = threading.Thread(target=sequence.cancel)
    thread.start(), thread.join()
    assert list(pieces) == [] and sequence.finish is Finish.CANCELLED and len(sequence.answer) == 1


def alone(prompt: list[int], n: int) -> list[int]:
    sequence = Sequence(prompt, Greedy(), Bytes(), max_tokens=n)
    assert len(list(generate(Slot(FakeContext(200)), sequence))) == n
    return sequence.answer


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(2, 255), min_size=1, max_size=9), st.integers(1, 9)), min_size=1, max_size=6
    ),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_many_are_driven_by_whoever_computes_them(wanted: list[tuple[list[int], int]], room: int, random: Any) -> None:
    """Rows come from batches of at most `room` tokens: of any sequence, a prompt in pieces, in any order."""
    running = [(Sequence(prompt, Greedy(), Bytes(), max_tokens=n), FakeContext(200)) for prompt, n in wanted]
    while unfinished := [(s, c) for s, c in running if s.finish is None]:
        left = room
        random.shuffle(unfinished)
        for sequence, context in unfinished:
            part = sequence.pending[:left]
            if not part:
                break
            logits = context.decode(part)[-1]
            del sequence.pending[: len(part)]
            left -= len(part)
            if not sequence.pending:
                sequence.push(logits)
    assert [s.answer for s, _ in running] == [alone(prompt, n) for prompt, n in wanted]
