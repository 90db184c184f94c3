"""A grammar that waits: nothing is forbidden before its trigger, all else after it, wherever in a token the trigger ends."""

import pytest

from pyggml.errors import GrammarError
from pyggml.grammar import Trigger
from pyggml.grammar.lazy import LazyGrammar

WORDS = [b"a", b"b", b"1", b"2", b"<c", b">", b">1", b"<c>", b"x<c>2", b""]
EOG = 9


class Words:
    n_vocab, eos, eot, eog_ids = len(WORDS), EOG, None, frozenset({EOG})

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        return WORDS[token]

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        raise NotImplementedError


def state() -> LazyGrammar:
    return LazyGrammar('root ::= "<c>" [0-9]+', Words(), Trigger(("<c>",)))


def allowed(grammar: LazyGrammar) -> set[bytes]:
    return {WORDS[i] for i in range(len(WORDS)) if grammar.mask()[i]}


@pytest.mark.parametrize("tokens", [[4, 5], [7], [0, 1, 4, 6], [8], [4, 0, 7]], ids=str)
def test_it_holds_from_the_trigger_on(tokens: list[int]) -> None:
    grammar = state()
    for token in tokens:
        assert grammar.allows(token) and len(allowed(grammar)) == len(set(WORDS)) and grammar.may_end
        grammar.accept(token)
    digits = {b"1", b"2"}
    assert grammar.triggered and allowed(grammar) - {b""} == digits
    assert grammar.may_end == (WORDS[tokens[-1]][-1:] in digits)
    with pytest.raises(GrammarError):
        grammar.accept(0)
    grammar.accept(2)
    assert grammar.may_end
    grammar.reset()
    assert not grammar.triggered and grammar.allows(0)


def test_what_the_grammar_cannot_begin_with_is_no_trigger() -> None:
    grammar = LazyGrammar('root ::= "<c>2"', Words(), Trigger(("<c>",)))
    grammar.accept(4)
    grammar.accept(6)
    assert not grammar.triggered and grammar.allows(0)


def test_the_grammar_may_begin_after_a_text_and_white_space() -> None:
    grammar = LazyGrammar('root ::= "1"', Words(), Trigger(after="<c>"))
    grammar.accept(7)
    assert grammar.triggered and allowed(grammar) - {b""} == {b"1"}


def _said(trigger: Trigger, text: bytes) -> bool:
    grammar = LazyGrammar('root ::= "<c>" [0-9]*', Words(), trigger)
    for byte in text.replace(b"<c>", b"\x07"):
        grammar.accept(WORDS.index(bytes([byte])) if byte != 7 else 7)
    return grammar.triggered


def test_words_count_only_where_they_may() -> None:
    """Not within reasoning, and some only at the beginning."""
    silent = Trigger(("<c>",), silent=("a", "b"))
    assert _said(silent, b"<c>") and _said(silent, b"ab<c>") and _said(silent, b"b<c>")
    assert not _said(silent, b"a<c>") and not _said(silent, b"aba<c>")
    assert not _said(Trigger(("<c>",), silent=("a", "b"), written="a"), b"<c>")
    assert _said(Trigger(("<c>",), silent=("a", "b"), written="a"), b"b<c>")
    assert _said(Trigger(starts=("<c>",)), b"<c>") and not _said(Trigger(starts=("<c>",)), b"a<c>")
    assert _said(Trigger(starts=("<c>",), silent=("a", "b")), b"a1b<c>")
