"""Texts that end a generation, sought in bytes that come piece by piece, held against a search in the whole."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from fake_context import Bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.runtime.stops import ReversePrompts, Search, StopTexts, partial_character

TEXTS = st.lists(st.text("ab#", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=3)
PIECES = st.lists(st.text("ab#", max_size=3).map(str.encode), max_size=12)


def agrees(search: type[Search], texts: list[bytes], pieces: list[bytes]) -> None:
    """With the definition: of all matches that the newest piece completes, the one that begins first."""
    sought, data = search(texts), b""
    for piece in pieces:
        before, data = len(data), data + piece
        ends = {i + len(t): i for t in texts for i in range(len(data)) if data.startswith(t, i)}
        new = [i for t in texts for i in range(len(data)) if data.startswith(t, i) and i + len(t) > before]
        cut = sought.push(piece)
        assert cut == (len(data) - min(new) if new else None), (data, ends)
        if cut is not None:
            return
        longest = max(
            n for n in range(len(data) + 1) if n == 0 or any(t[:n] == data[-n:] and n < len(t) for t in texts)
        )
        assert sought.partial() == longest


@settings(deadline=None)
@given(TEXTS, PIECES)
def test_the_first_match_wherever_pieces_end(texts: list[bytes], pieces: list[bytes]) -> None:
    agrees(Search, texts, pieces)


class OnlyWithin(Search):
    """A mutant: sought in each piece alone."""

    def push(self, piece: bytes) -> int | None:
        self._tail = b""
        return super().push(piece)


class LastOne(Search):
    """A mutant: the text named first, not the one that begins first."""

    def push(self, piece: bytes) -> int | None:
        tail = self._tail + piece
        return next((len(tail) - tail.find(t) for t in self._texts if t in tail), None) or super().push(piece)


class ShortMemory(Search):
    """A mutant: remembers a byte less than the longest text needs."""

    def push(self, piece: bytes) -> int | None:
        cut = super().push(piece)
        self._tail = self._tail[-max(1, self._longest - 2) :]
        return cut


@pytest.mark.parametrize("mutant", [OnlyWithin, LastOne, ShortMemory])
def test_mutants_are_caught(mutant: type[Search]) -> None:
    cases: list[tuple[list[bytes], list[bytes]]] = [
        ([b"ab"], [b"a", b"b"]),
        ([b"b", b"ab"], [b"ab"]),
        ([b"aab#"], [b"a", b"a", b"b", b"#"]),
    ]
    for texts, pieces in cases:
        agrees(Search, texts, pieces)
    with pytest.raises(AssertionError):
        for texts, pieces in cases:
            agrees(mutant, texts, pieces)


def test_a_stop_text_is_cut_off_and_a_reverse_prompt_stays() -> None:
    stop, reverse = StopTexts([b"##"]), ReversePrompts([b"##"], Bytes())
    assert not reverse.begin([*b"x"])
    for push in (stop.push, reverse.push):
        assert push(ord("#"), b"#") is None
    assert (stop.held(), reverse.held()) == (1, 0)
    assert (stop.push(ord("#"), b"#"), reverse.push(ord("#"), b"#")) == (2, 0)


def test_a_reverse_prompt_may_begin_in_the_prompt_and_name_a_token() -> None:
    reverse = ReversePrompts([b"U:", b"<1>"], Bytes())
    assert not reverse.begin([*b"aU"]) and reverse.push(ord(":"), b":") == 0
    assert reverse.begin([*b"aU:"]) and not reverse.begin([*b"aU: "]) and reverse.begin([*b"aU:  "], slack=2)
    assert not reverse.begin([]) and reverse.push(1, b"") == 0  # what is shown of it does not matter


def test_characters_that_are_not_complete() -> None:
    for character in ("a", "é", "€", "🙂"):
        data = character.encode()
        expected = [*range(1, len(data)), 0]
        assert [partial_character(b"xy" + data[:n]) for n in range(1, len(data) + 1)] == expected
    assert partial_character(b"") == partial_character(b"\x80\x80\x80\x80") == 0
    assert all(a < b for a, b in pairwise([partial_character(b"\xf0\x9f"[:n]) for n in range(3)]))


def test_nothing_is_sought_where_nothing_is_wanted() -> None:
    make: list[Callable[[], StopTexts | ReversePrompts]] = [lambda: StopTexts([]), lambda: ReversePrompts([], Bytes())]
    for stops in (each() for each in make):
        assert stops.push(97, b"a") is None and stops.held() == 0
