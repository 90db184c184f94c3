"""A grammar that waits: nothing is forbidden before its trigger, all else after it, wherever in a token the trigger ends."""

import pytest

from pyggml.errors import GrammarError
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
    return LazyGrammar('root ::= "<c>" [0-9]+', Words(), ["<c>"])


def allowed(grammar: LazyGrammar) -> set[bytes]:
    return {WORDS[i] for i in range(len(WORDS)) if grammar.mask()[i]}


@pytest.mark.parametrize("tokens", [[4, 5], [7], [0, 1, 4, 6], [8], [4, 0, 7]], ids=str)
def test_it_holds_from_the_trigger_on(tokens: list[int]) -> None:
    grammar = state()
    for token in tokens:
        assert grammar.allows(token) and len(allowed(grammar)) == len(set(WORDS)) and grammar.may_end
        grammar.accept(token)
    digits = {b"1", b"2"}
    assert grammar.holds and allowed(grammar) - {b""} == digits
    assert grammar.may_end == (WORDS[tokens[-1]][-1:] in digits)
    with pytest.raises(GrammarError):
        grammar.accept(0)
    grammar.accept(2)
    assert grammar.may_end
    grammar.reset()
    assert not grammar.holds and grammar.allows(0)


def test_what_the_grammar_cannot_begin_with_is_no_trigger() -> None:
    grammar = LazyGrammar('root ::= "<c>2"', Words(), ["<c>"])
    grammar.accept(4)
    grammar.accept(6)
    assert not grammar.holds and grammar.allows(0)


def test_a_group_says_where_the_grammar_begins() -> None:
    grammar = LazyGrammar('root ::= "1"', Words(), ["<c>()"])
    grammar.accept(7)
    assert grammar.holds and allowed(grammar) - {b""} == {b"1"}
