"""Grammars: what text they describe, what is refused and how fast, and that states remember nothing wrong.

Owns the properties that need no second implementation.
"""

import re
import time

import numpy as np
import pytest
from grammars import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.errors import GrammarError, SamplerError
from pyggml.grammar import Matcher, json_schema_to_grammar, matcher, parse
from pyggml.grammar.rules import Chars
from pyggml.grammar.vocabulary import GrammarState, decode_utf8
from pyggml.sampler import SamplerChain, SamplerParams

few = settings(deadline=None, max_examples=80)


class Words:
    """A vocabulary of these texts; the last one ends a generation."""

    eos = eot = None

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [*pieces, b"</s>"]
        self.n_vocab = len(self.pieces)
        self.eog_ids = frozenset([self.n_vocab - 1])

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        return self.pieces[token]

    def encode(self, text, add_special=True, parse_special=False) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return [self.pieces.index(data)] if data in self.pieces else [0, 0]


BYTES = Words(*(bytes([i]) for i in range(256)))


# ---- regular grammars are regular expressions

ATOMS = {'"a"': "a", '"bc"': "bc", "[ab]": "[ab]", "[^a]": "[^a]", ".": "[\\s\\S]", '"é"': "é", '"\\x61"': "a"}
REPEATS = {"": "", "*": "*", "+": "+", "?": "?", "{2}": "{2}", "{1,2}": "{1,2}", "{2,}": "{2,}", "{0}": "{0}"}


@st.composite
def expressions(draw, depth=0):
    """(GBNF, regular expression) of the same texts."""

    def item():
        if depth < 2 and draw(st.booleans()):
            ours, theirs = draw(expressions(depth + 1))
            ours, theirs = f"({ours})", f"(?:{theirs})"
        else:
            ours = draw(st.sampled_from(sorted(ATOMS)))
            theirs = f"(?:{ATOMS[ours]})"
        sign = draw(st.sampled_from(sorted(REPEATS)))
        return ours + sign, theirs + REPEATS[sign]

    branches = []
    for _ in range(draw(st.integers(1, 3))):
        items = [item() for _ in range(draw(st.integers(1, 3)))]
        branches.append((" ".join(a for a, _ in items), "".join(b for _, b in items)))
    return " | ".join(a for a, _ in branches), "|".join(b for _, b in branches)


def check_regular(fit, pair, texts):
    ours, theirs = pair
    for text in texts:
        try:
            fitting = fit(f"root ::= {ours}", text)
        except GrammarError as reason:  # (x{0})*: refused, as by llama.cpp
            assert "begins with itself" in str(reason)
            return
        assert fitting == bool(re.fullmatch(theirs, text)), (pair, text)


texts = st.lists(st.text("abcé", max_size=6), min_size=1, max_size=8)


@few
@given(expressions(), texts)
def test_regular_grammars_match_what_regular_expressions_match(pair, texts):
    check_regular(fits, pair, texts)


def test_a_wrong_repetition_is_caught():
    def once_too_often(grammar, text):
        return fits(grammar.replace("*", "+"), text)

    with pytest.raises(AssertionError):
        check_regular(once_too_often, ('"a"*', "a*"), ["", "a"])


# ---- masks


@few
@given(expressions(), st.text("abcé", max_size=8), st.lists(st.binary(min_size=1, max_size=4), max_size=30))
def test_a_mask_is_the_sum_of_single_answers(pair, text, pieces):
    vocab = Words(*pieces, b"a", b"bc", b"ab", "é".encode(), b"\xc3", b"\xa9", b"b\xc3", b"")
    try:
        state = GrammarState(f"root ::= {pair[0]}", vocab)
    except GrammarError as reason:
        assert "begins with itself" in str(reason)
        return
    for token in np.random.default_rng(len(text)).integers(0, vocab.n_vocab, 12):
        mask = state.mask()
        assert mask.tolist() == [state.allows(i) for i in range(vocab.n_vocab)]
        copy = state.clone()
        if mask[token]:
            state.accept(int(token))
        else:
            with pytest.raises(GrammarError):
                state.accept(int(token))
        assert (copy.mask() == mask).all()  # a clone stays where it was


@few
@given(st.text(max_size=12), st.data())
def test_text_may_be_cut_anywhere(text, data):
    """However bytes are cut into tokens, a grammar of just this text takes it, and ends there alone."""
    text = text.replace("\0", "x")
    literal = "".join(f"\\U{ord(char):08X}" for char in text)
    state = GrammarState(f'root ::= "{literal}"', BYTES)
    for byte in text.encode():
        assert not state.may_end and state.allows(byte)
        state.accept(byte)
    assert state.may_end and not state.mask()[:256].any() and state.mask()[256]


@few
@given(st.text(max_size=10), st.integers(0, 30))
def test_decoding_in_two_parts_is_decoding(text, cut):
    data = text.replace("\0", "x").encode()
    first, partial = decode_utf8(data[:cut])
    second, rest = decode_utf8(data[cut:], partial)
    assert first + second == [ord(char) for char in data.decode()] and rest == (0, 0)


def test_a_decoder_without_memory_is_caught():
    with pytest.raises(AssertionError):
        data = "é".encode()
        first, _ = decode_utf8(data[:1])
        second, rest = decode_utf8(data[1:])
        assert first + second == [0xE9] and rest == (0, 0)


def test_tokens_by_name_and_number():
    vocab = Words(b"<think>", b"a", b"b")
    state = GrammarState("root ::= <think> !<[1]> [ab]", vocab)
    assert state.mask().tolist() == [True, False, False, False]
    state.accept(0)
    assert state.mask().tolist() == [True, False, True, False]
    state.accept(2)
    state.accept(1)
    assert state.may_end
    state.reset()
    assert state.allows(0) and not state.may_end
    with pytest.raises(GrammarError, match="line 1: '<x>' is not one token of the vocabulary, but 2"):
        GrammarState("root ::= <x>", vocab)


def test_forgetting_changes_nothing(monkeypatch):
    monkeypatch.setattr(matcher, "MAX_MEMORY", 3)
    monkeypatch.setattr(matcher, "MAX_EDGES", 3)
    state = GrammarState('root ::= "(" root ")" | "[" [ab]* "]"', BYTES)
    for byte in b"((([abba])))":
        assert state.mask()[byte] and state.allows(byte)
        state.accept(byte)
    assert state.may_end


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no rule 'root'"),
        ('a ::= b\nb ::= "x"', "there is no rule 'root'"),
        ("root ::= a", "rule 'a' is used but not defined"),
        ('root ::= "x', "line 1: a text without its closing quote"),
        ("root ::= [a", "line 1: a character class without its ']'"),
        ('root ::= ("a"', "line 1: a group without its ')'"),
        ('root ::= "a")', "line 1: expecting a new line or the end at ')'"),
        ("root = x", "line 1: expecting '::='"),
        ("\nroot ::= *", "line 2: expecting an item before"),
        ('root ::= "\\q"', "line 1: unknown escape"),
        ('root ::= "\\x4"', "line 1: expecting 2 hexadecimal digits"),
        ('root ::= "a"{x}', "line 1: expecting a number"),
        ('root ::= "a"{1,2', "line 1: expecting '}'"),
        ('root ::= "a"{5,3}', "line 1: at least 5 and at most 3 repetitions"),
        ('root ::= "a"{2001}', "line 1: 2001 repetitions, more than 2000"),
        ("root ::= " + 5000 * '"a" | ' + '"a"', "line 1: more than 5000 alternatives"),
        ('root ::= "b" (' + 5000 * "| " + ")", "line 1: more than 5000 alternatives"),
        ('root ::= "a"{' + "9" * 5000 + "}", "repetitions, more than 2000"),
        ('root ::= ("a"{50}){50}{50}', "rules repeated 50 times are more than 2000"),
        (f'root ::= "{"abc" * 400}"{{1000}}', "more than 1000000 elements"),
        ("root ::= " + "(" * 5000, "more than 200 groups inside each other"),
        ('root ::= root "a" | "b"', "rule 'root' begins with itself"),
        ('root ::= a\na ::= b | "x"\nb ::= a "y"', "begins with itself"),
        ("root ::= <[99999999999]>", "a token's number too large"),
        ("root ::= <x>", "a token by name, but there is no vocabulary"),
        ("root ::= <x", "a token without its '>'"),
    ],
)
def test_a_bad_grammar_is_refused_in_one_line(text, message):
    start = time.perf_counter()
    with pytest.raises(GrammarError, match=re.escape(message)) as error:
        parse(text)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - start < 5


@few
@given(st.text('ro:=t()[]{}"|*+?,.\\x41-^<>! \n#', max_size=40))
def test_no_text_crashes_the_parser(text):
    for grammar in (text, "root ::= " + text):
        try:
            Matcher(parse(grammar))
        except GrammarError as reason:
            assert str(reason).startswith("grammar")


HUGE = {
    "two of each": 'root ::= "a" root b | "a" root c | "x"\nb ::= "y" | "z"\nc ::= "y" | "w"',
    "all optional": 'root ::= ("a"? "a"? ("a"? | "a"{0,9})){0,60} "b"',
    "stars of stars": 'root ::= ((("a"*)* "a"*)* ("a" | "aa")*)*',
    "left recursion behind what may be empty": 'root ::= b root "x" | "y"\nb ::= c\nc ::= "" | "z"',
    "a thousand optional": "root ::= ([a-z]?){1000}",
    "deep": 'root ::= "a" root "b" | ""',
}


@pytest.mark.parametrize("name", HUGE)
def test_a_grammar_too_ambiguous_to_follow_says_so_in_time(name):
    """Either it is followed, or a named error comes; never a wait."""
    vocab = Words(*(b"a" * n for n in range(1, 30)), b"b", b"x", b"y", b"zz", b"aaab")
    start = time.perf_counter()
    try:
        state = GrammarState(HUGE[name], vocab)
        for _ in range(60):
            state.mask()
            state.accept(9)
        assert name in ("stars of stars", "deep", "a thousand optional", "all optional")
    except GrammarError as reason:
        assert "ambiguous" in str(reason) or "does not fit" in str(reason)
    assert time.perf_counter() - start < 20


def test_ten_thousand_levels_are_no_recursion():
    state = GrammarState('root ::= "a" root "b" | ""', BYTES)
    for _ in range(10_000):
        state.accept(ord("a"))
    for _ in range(10_000):
        state.accept(ord("b"))
    assert state.may_end and not state.allows(ord("b"))


# ---- the chain's side


def test_a_chain_needs_the_vocabulary_and_a_token_that_fits():
    params = SamplerParams(seed=1, grammar='root ::= "q"')
    with pytest.raises(SamplerError, match="a grammar needs the model's vocabulary"):
        SamplerChain(params, 3)
    vocab = Words(b"a", b"b")
    with pytest.raises(GrammarError, match="none of the 3 tokens fits here"):
        SamplerChain(params, 3, vocab=vocab).sample(np.zeros(3, np.float32))
    chain = SamplerChain(SamplerParams(seed=1, grammar='root ::= "ab"*'), 3, vocab=vocab)
    chain.accept(1)  # of the prompt: the grammar does not hear of it
    drawn = [chain.sample(np.zeros(3, np.float32)) for _ in range(30)]
    assert re.fullmatch("(01|2)*0?", "".join(map(str, drawn))) and 0 in drawn
    with pytest.raises(GrammarError, match=r"token 1 \('b'\) does not fit here"):
        SamplerChain(SamplerParams(grammar='root ::= "a"'), 3, vocab=vocab).accept(1, drawn=True)


# ---- large classes, large numbers


def plain_matches_some(chars: Chars, low: int, high: int) -> bool:
    """What `Chars` means, range by range."""
    return any(a <= high and low <= b for a, b in chars.ranges) != chars.negated


points = st.integers(0, 40)


@few
@given(st.lists(st.tuples(points, points), max_size=8), st.booleans(), points, points)
def test_a_class_is_the_sum_of_its_ranges(ranges, negated, low, width):
    """In any order, overlapping, and also those that end before they begin."""
    chars = Chars(tuple(ranges), negated)
    assert chars.matches(low) == (any(a <= low <= b for a, b in ranges) != negated)
    assert chars.matches_some(low, low + width) == plain_matches_some(chars, low, low + width)
    assert chars == Chars(tuple(ranges), negated) and chars != Chars(tuple(ranges), not negated)


def test_a_class_that_forgets_longer_ranges_is_caught():
    """A mutant that looks at the last range only."""
    chars = Chars(((0, 9), (2, 3)))
    chars._ends = [high for _, high in sorted(chars.ranges)]
    assert chars.matches(5) is False and plain_matches_some(chars, 5, 5) is True


def test_a_class_of_hundreds_of_thousands_of_ranges_is_looked_up_not_through():
    """With a look at each range this would take hours."""
    text = "".join(chr(0x1000 + 2 * i) for i in range(24_000)) + "".join(chr(0x10000 + 2 * i) for i in range(400_000))
    vocab = Words(*(chr(0x1000 + i).encode() for i in range(20_000)))
    state = GrammarState(parse(f"root ::= [{text}]+"), vocab)
    for _ in range(3):
        mask = state.mask()
        assert mask[:20_000:2].all() and not mask[1:20_000:2].any()
        state.accept(0)


def test_texts_beyond_a_limit_are_refused():
    with pytest.raises(GrammarError, match="grammar: 1000001 characters, more than 1000000"):
        parse("root ::= x" + " " * 999_991)
    with pytest.raises(GrammarError, match="JSON schema: 1000001 characters, more than 1000000"):
        json_schema_to_grammar(" " * 1_000_001)
