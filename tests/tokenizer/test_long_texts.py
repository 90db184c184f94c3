"""Long texts: what is compiled or remembered for them gives what the plain searches give."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from pyggml.tokenizer import character_bpe, charsmap, spm
from pyggml.tokenizer.charsmap import Charsmap
from pyggml.tokenizer.pairs import Pairs
from pyggml.tokenizer.pretokenizers import pre_tokenizer
from pyggml.tokenizer.vocab import prefixes

LETTERS = "abc\u2581\u65e5"


def words(seed: int, n: int) -> list[str]:
    random_ = random.Random(seed)
    return ["".join(random_.choices(LETTERS, k=random_.randrange(2, 6))) for _ in range(n)]


def texts(seed: int) -> list[str]:
    random_ = random.Random(seed)
    return [
        "a",
        "x",
        300 * "a",
        301 * "b",
        *("".join(random_.choices(LETTERS + "x", k=random_.randrange(2, 400))) for _ in range(60)),
    ]


@pytest.mark.parametrize("different", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_merged_by_score(seed: int, different: int) -> None:
    """Few different scores: then most are decided by the place. Tokens of more than two pieces are reached through others, or not."""
    random_ = random.Random(seed)
    ids = {text: i for i, text in enumerate(dict.fromkeys([*"ab", *words(seed, 40), "aa", "aaa", "aaaa"]))}
    scores = [-float(random_.randrange(different)) for _ in ids]
    parts = ((text[:at], text[at:], -scores[token]) for text, token in ids.items() for at in range(1, len(text)))
    pairs = Pairs(part for part in parts if all(len(piece) == 1 or piece in ids for piece in part[:2]))
    for text in texts(seed):
        assert pairs.merge(text) == spm.merge_by_score(text, ids, scores), text


@pytest.mark.parametrize("wrong", [None, lambda rank: -rank, lambda rank: 0.0])
def test_pairs_are_merged_in_their_order(wrong: Callable[[float], float] | None) -> None:
    """And not in another one."""
    merges = list(dict.fromkeys(f"{a} {b}" for a, b in zip(words(7, 99), words(8, 99), strict=True)))
    merges = ["a b", "b a", "a a", "ab a", "b c", "aa aa", "ab c", "c  c", " c", *merges, "bc a", "c b", "ab ab"]
    plain = character_bpe.CharacterMerges({}, merges, pre_tokenizer("gemma4"))
    pairs = plain._pairs
    if wrong is not None:
        parted = ((merge.split(" "), rank) for merge, rank in plain._ranks.items())
        pairs = Pairs((*pair, wrong(rank)) for pair, rank in parted if len(pair) == 2 and all(pair))
    assert [pairs.merge(text) == plain._pieces(text) for text in texts(9)].count(False) == 0 or wrong is not None
    assert wrong is None or any(pairs.merge(text) != plain._pieces(text) for text in texts(9))


def test_no_pairs_at_all() -> None:
    assert Pairs([]).merge("abc") == ["a", "b", "c"]


def test_long_texts_take_the_compiled_way(monkeypatch: pytest.MonkeyPatch) -> None:
    merges = character_bpe.CharacterMerges({"ab": 0, "a": 1, "b": 2}, ["a b"], pre_tokenizer("gemma4"))
    monkeypatch.setattr(character_bpe, "LONG", 4)
    monkeypatch.setattr(merges, "_pieces", lambda word: [word])
    assert merges.encode("ababa") == [0, 0, 1] and merges.encode("ab") == [0]


def test_beginnings() -> None:
    assert prefixes(["abc", "ab", "x"]) == {"a", "ab", "abc", "x"} and prefixes([b"ab"]) == {b"a", b"ab"}


class Table(Charsmap):
    """Of these sequences, by bytes."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self._rows = rows
        super().__init__([0], b"")

    def _is_safe(self, byte: int) -> bool:
        return chr(byte) in "xyz "

    def _longest(self, data: bytes, at: int) -> tuple[int, int, int]:
        length = 0
        for end in range(at + 1, len(data) + 1):
            if not any(row.startswith(data[at:end]) for row in self._rows):
                return length, self._offset(data[at : at + length]), end - 1
            if data[at:end] in self._rows:
                length = end - at
        return length, self._offset(data[at : at + length]), len(data)

    def _offset(self, row: bytes) -> int:
        return list(self._rows).index(row) if row else 0

    def _text(self, offset: int) -> bytes:
        return list(self._rows.values())[offset]


ROWS = {
    "a": "1",
    "ab": "2",
    "abcabc": "3",
    "\u00e9": "e",
    "e\u0301": "e",
    "\u65e5\u672c": "J",
    "x\u0301": "X",
    "caaaaaaaaaa": "C",
}
"""Also one that is longer than what is looked up together."""


@pytest.mark.parametrize("odd", [{}, {b"\xe6": b"-"}, {b"b": b"\xe6\x97"}], ids=["", "half a sequence", "half a text"])
def test_a_table_of_characters(odd: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table({**{a.encode(): b.encode() for a, b in ROWS.items()}, **odd})
    random_ = random.Random(1)
    some: list[Any] = [*ROWS, *"abce\u0301\u65e5\u672cxyz \0", "caaaa", "abca"]
    monkeypatch.setattr(charsmap, "MOST_KNOWN", 20)
    for _ in range(300):
        text = "".join(random_.choices(some, k=random_.randrange(9)))
        assert table.replaced(text) == table._by_bytes(text), text


PLAIN = {
    "afmoe": [r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"],
    "superbpe": [r"\p{N}+", r"(?m:.)(?:(?!(?:[0-9]{3})+(?![0-9]))(?m:.))*"],
}
"""Of patterns that are written otherwise because these take the square of a text's length."""


def splits(*patterns: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns])


@pytest.mark.parametrize(("name", "n"), [("afmoe", 3), ("superbpe", 2)])
def test_digits_in_threes_from_the_right(name: str, n: int) -> None:
    plain, used = splits(*PLAIN[name]), splits(*pre_tokenizer(name).patterns[:n])
    random_ = random.Random(name)
    for _ in range(2000):
        text = "".join(random_.choices("0123\u00bd\u00b2\u0663a \n", k=random_.randrange(1, 16)))
        assert plain.pre_tokenize_str(text) == used.pre_tokenize_str(text), text


@pytest.mark.parametrize("name", ["afmoe", "cohere2moe", "superbpe"])
@pytest.mark.parametrize("text", ["x", "7", "7\u00bd"])
def test_no_pattern_takes_the_square_of_a_length(name: str, text: str) -> None:
    """One that does takes minutes."""
    assert splits(*pre_tokenizer(name).patterns).pre_tokenize_str(100_000 * text)
