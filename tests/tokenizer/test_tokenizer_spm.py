"""The SentencePiece-style tokenizer against llama.cpp's own cases, the stock library, and vocabularies made by hand."""

import functools
import heapq
import logging
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Peer
from vocabularies import BITS, CHARACTERS, TEXT, WORDS, Stock, describe, load

from pyggml.errors import TokenizerError
from pyggml.tokenizer import StreamDecoder, Tokenizer, spm
from pyggml.tokenizer.spm import SPACE, SPM, merge_by_score

VOCABS = ["llama-spm", "phi-3"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTES = [f"<0x{b:02X}>" for b in range(256)]


@pytest.fixture(scope="session")
def vocab_file(peer: Peer):
    return lambda name: peer.vendor / "models" / f"ggml-vocab-{name}.gguf"


@pytest.fixture(scope="module")
def stock(peer: Peer):
    with Stock(peer, __file__) as stock:
        yield stock


@pytest.fixture(scope="session")
def tokenizers():
    """load(), each file once."""
    return functools.cache(load)


@pytest.mark.parametrize("name", VOCABS)
def test_reference_cases(name: str, vocab_file) -> None:
    path = vocab_file(name)
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) == len(lines) > 40
    tokenizer = load(path)
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == [int(i) for i in line.split()], text
        assert tokenizer.decode(ids) == (f" {text}" if text else "")
        stream = StreamDecoder(tokenizer)
        assert "".join(stream.push(i) for i in ids) + stream.finish() == (f" {text}" if text else "")


@pytest.mark.parametrize("name", [*VOCABS, "baichuan"])
def test_special_ids_eog_and_all_pieces_equal_the_peer(name: str, stock: Stock, vocab_file) -> None:
    assert describe(load(vocab_file(name))) == stock("describe", vocab_file(name))


def random_texts(n: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    bits = [*WORDS, "    ", " " * 17, SPACE, "the", "<s>", "<0x41>", "\x00", *(chr(c) for c in range(0x20, 0x7F))]

    def bit() -> str:
        if random_.random() < 0.8:
            return random_.choice(bits)
        while True:
            code = random_.randrange(0x80, random_.choice((0x250, 0x3000, 0x10000, 0x20000)))
            if not 0xD800 <= code < 0xE000:
                return chr(code)

    return ["".join(bit() for _ in range(random_.randrange(1, 30))) for _ in range(n)]


@pytest.mark.parametrize("name", [*VOCABS, "baichuan"])
def test_4000_random_texts_equal_the_peer(name: str, stock: Stock, vocab_file, tokenizers) -> None:
    texts = random_texts(4000, 1)
    path, tokenizer = vocab_file(name), tokenizers(vocab_file(name))
    expected = stock("tokenize_all", path, texts, True, False)
    assert [tokenizer.encode(text) for text in texts] == expected


@pytest.mark.parametrize("name", VOCABS)
@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.one_of(BITS, CHARACTERS, st.integers(0, 200).map(" ".__mul__)), max_size=12))
def test_any_text_equals_the_peer(name: str, stock: Stock, vocab_file, tokenizers, parts: list[str]) -> None:
    path, text = vocab_file(name), "".join(parts)
    ids = tokenizers(path).encode(text)
    assert ids == stock("tokenize", path, text, True, False)
    assert tokenizers(path).decode(ids) == (f" {text}" if text else "").replace(SPACE, " ")


SPECIALS = ["<s>", "</s>", "<unk>", "<|user|>", "<|end|>", "<|assistant|>", "<|system|>", "<|", "|>", "<", " ", "\n"]


@pytest.mark.parametrize("name", VOCABS)
@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.one_of(st.sampled_from(SPECIALS), BITS), max_size=8), add=st.booleans(), parse=st.booleans())
def test_special_tokens_equal_the_peer(
    name: str, stock: Stock, vocab_file, tokenizers, parts: list[str], add: bool, parse: bool
) -> None:
    text, path = "".join(parts), vocab_file(name)
    assert tokenizers(path).encode(text, add, parse) == stock("tokenize", path, text, add, parse)


def test_a_wrong_order_of_equals_is_noticed(
    monkeypatch: pytest.MonkeyPatch, stock: Stock, vocab_file, tokenizers
) -> None:
    """The comparison has teeth: with the rightmost of equals first, runs of spaces come out otherwise."""
    path, text = vocab_file("llama-spm"), "x" + " " * 21 + "y"
    expected = stock("tokenize", path, text, True, False)
    tokenizer = tokenizers(path)
    assert tokenizer.encode(text) == expected

    def rightmost(heap: list[Any], item: tuple[float, int, int, str]) -> None:
        heapq.heappush(heap, (item[0], -item[1], item[2], item[3]))

    def pop(heap: list[Any]) -> tuple[float, int, int, str]:
        score, left, right, joined = heapq.heappop(heap)
        return score, -left, right, joined

    monkeypatch.setattr(spm, "heapq", type("H", (), {"heappush": rightmost, "heappop": pop}))
    tokenizer._remembered.cache_clear()
    assert tokenizer.encode(text) != expected
    tokenizer._remembered.cache_clear()


# Vocabularies made by hand


def made(*more: str, scores: list[float] | None = None, types: dict[str, int] | None = None, **keys: Any):
    """Metadata of a vocabulary of <unk> <s> </s>, the byte tokens and `more`, whose scores are those given."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *more]
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, **dict.fromkeys(BYTES, BYTE), **(types or {})}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + (scores or [-float(i) for i in range(len(more))]),
        "tokenizer.ggml.token_type": [kinds.get(t, NORMAL) for t in tokens],
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def build(*args: Any, **kwargs: Any) -> Tokenizer:
    tokenizer = Tokenizer.from_metadata(made(*args, **kwargs))
    assert type(tokenizer) is SPM
    return tokenizer


def write(path: Path, metadata: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_scores(metadata["tokenizer.ggml.scores"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key in ("add_space_prefix", "add_bos_token", "add_eos_token"):
        if f"tokenizer.ggml.{key}" in metadata:
            writer.add_bool(f"tokenizer.ggml.{key}", metadata[f"tokenizer.ggml.{key}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("seed", range(12))
def test_random_vocabularies_equal_the_peer(seed: int, stock: Stock, tmp_path: Path) -> None:
    """Few letters, so that tokens overlap; equal scores; tokens with spaces inside, and of letters that are none."""
    random_ = random.Random(seed)
    letters = "ab é" + SPACE
    words = {"".join(random_.choices("abé" + SPACE, k=random_.randrange(1, 6))) for _ in range(60)}
    more = sorted(words)
    scores = [float(random_.randrange(-6, 1)) for _ in more]
    flags = {key: random_.random() < 0.5 for key in ("add_space_prefix", "add_bos_token", "add_eos_token")}
    metadata = made(*more, scores=scores, types=dict.fromkeys(more[::17], USER_DEFINED), **flags)
    path, tokenizer = write(tmp_path / "v.gguf", metadata), Tokenizer.from_metadata(metadata)
    texts = ["".join(random_.choices(letters, k=random_.randrange(0, 25))) for _ in range(80)] + ["x<s>a <unk>b\n"]
    for parse in (False, True):
        assert [tokenizer.encode(t, parse_special=parse) for t in texts] == stock(
            "tokenize_all", path, texts, True, parse
        )


def test_the_highest_score_comes_first_and_of_equals_the_leftmost() -> None:
    ids = {"ab": 0, "bc": 1, "abc": 2, "cd": 3}
    assert merge_by_score("abcd", ids, [-1.0, -2.0, -3.0, -4.0]) == ["abc", "d"]
    assert merge_by_score("abcd", ids, [-2.0, -1.0, -3.0, -4.0]) == ["abc", "d"]
    assert merge_by_score("abcd", ids, [-1.0, -1.0, -3.0, -2.0]) == ["ab", "cd"]
    assert merge_by_score("", ids, []) == []
    assert merge_by_score("aaaaa", {"aa": 0, "aaa": 1}, [0.0, 0.0]) == ["aaa", "aa"]


def test_bytes_of_what_is_no_token() -> None:
    t = build("a", SPACE)
    assert t.encode("aé", add_special=False) == [260, 259, 3 + 0xC3, 3 + 0xA9]
    assert t.decode([259, 3 + 0xC3, 3 + 0xA9]) == "aé"
    assert t.nl == 3 + 10
    stream = StreamDecoder(t)
    assert [stream.push(3 + b) for b in "é🦙".encode()] == ["", "é", "", "", "", "🦙"] and stream.finish() == ""
    assert stream.push(3 + 0xE2) == "" and stream.push(259) == "\ufffda"


def test_without_byte_tokens_the_letter_or_the_unknown_token() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", SPACE]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 5,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL],
    }
    t = Tokenizer.from_metadata(metadata)
    assert t.encode("az") == [1, 4, 3, 0] and t.encode("é", add_special=False) == [4, 0, 0] and t.nl is None
    none = Tokenizer.from_metadata({**metadata, "tokenizer.ggml.tokens": [], "tokenizer.ggml.add_bos_token": False})
    with pytest.raises(TokenizerError, match=r"no token for '.', none for its bytes, none for <unk>"):
        none.encode("x")
    assert none.encode("") == []


def test_bos_eos_and_the_space() -> None:
    t = build("x", SPACE + "x", SPACE)
    x, sx = 259, 260
    assert t.encode("x") == [1, sx] and t.encode("", add_special=True) == [1] and t.encode("", False) == []
    assert t.encode("<s>x", parse_special=True) == [1, 1, sx] and t.encode("x</s>x", False, True) == [sx, 2, sx]
    assert build("x", SPACE + "x", add_space_prefix=False, add_bos_token=False, add_eos_token=True).encode("x") == [
        x,
        2,
    ]
    assert (t.bos, t.eos, t.unk, t.add_bos, t.add_eos, t.is_eog(2)) == (1, 2, 0, True, False, True)


def test_long_words_and_tokens_that_go_on_beyond_a_space() -> None:
    tokens = ("a", f"a{SPACE}b", f"{SPACE}b", f"{SPACE}a", SPACE)
    assert build(*tokens, scores=[-1.0, -2.0, -3.0, -4.0, -5.0]).encode("a b", False) == [263, 260]
    assert build(*tokens, scores=[-1.0, -5.0, -3.0, -2.0, -4.0]).encode("a b", False) == [262, 261]
    t = build("a", "aa", SPACE)
    assert t.encode("a" * 1001, False) == [261, *[260] * 500, 259]


def test_no_scores_warns(caplog: pytest.LogCaptureFixture) -> None:
    metadata = made("a", "aa")
    del metadata["tokenizer.ggml.scores"]
    with caplog.at_level(logging.WARNING):
        t = Tokenizer.from_metadata(metadata)
    assert "no tokenizer.ggml.scores" in caplog.text and t.encode("aa", False)[-1] == 260


@pytest.mark.parametrize("odd", ["<0xZZ>", "<0x-1>", "<0x", "<0x123>", ""])
def test_odd_byte_tokens(odd: str) -> None:
    """As tokens of the byte type they are refused by name; as plain tokens they are text."""
    with pytest.raises(TokenizerError, match=r"token 259 is of the byte type, but .* does not name a byte"):
        build(odd, types={odd: BYTE})
    t = build(odd)
    assert t.token_bytes(259) == (odd or "[EMPTY_259]").encode()
    assert t.decode(t.encode(odd, False)) == (f"{SPACE}{odd}" if odd else "")  # no token for a space


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": "x"}, "scores must be an array of numbers"),
        ({"scores": ["x"] * 260}, "scores must be an array of numbers"),
        ({"scores": [0.0] * 259}, "scores has 259 entries for 260 tokens"),
        ({"scores": [0.0] * 259 + [float("nan")]}, "the score of token 259 is not a number"),
        ({"add_space_prefix": 1}, "add_space_prefix must be a bool, it is 1"),
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
    ],
)
def test_bad_vocabularies_are_named(change: dict[str, Any], message: str) -> None:
    changed = {**made("a"), **{f"tokenizer.ggml.{k}": v for k, v in change.items()}}
    with pytest.raises(TokenizerError, match=message) as e:
        Tokenizer.from_metadata(changed)
    assert "\n" not in str(e.value)


@settings(deadline=None, max_examples=200)
@given(text=st.one_of(TEXT, st.text(max_size=40)))
def test_round_trip(text: str) -> None:
    assert WORDY.decode(WORDY.encode(text)) == (f" {text}" if text else "").replace(SPACE, " ")


WORDY = Tokenizer.from_metadata(made("a", "b", "ab", "the", "th", "he", SPACE + "the", SPACE, SPACE * 2))
