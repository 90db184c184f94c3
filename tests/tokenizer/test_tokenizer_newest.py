"""Tokenizers of all kinds against llama.cpp of protocol 8.0.0: its own cases, its vocabularies, and ones made by hand."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from peer_archs import ensure_driver
from peer_programs import Programs
from programs import Newest
from vocabularies import BLOCKS, CUTS, WORDS, NewestStock, describe, load

from pyggml.errors import TokenizerError
from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Tokenizer, plamo, unigram, wordpiece
from pyggml.tokenizer.bpe import BYTE_CHARACTERS
from pyggml.tokenizer.pretokenizers import PRE_TOKENIZERS
from pyggml.tokenizer.rwkv import unescaped

DRIVER = Path(__file__).parents[1] / "support" / "vocab_driver.cpp"
CASES = [
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
]
CASES += ["mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"]
NEW_KINDS = ["bert-bge", "gemma-4", "nomic-bert-moe"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPACE = "\u2581"


@pytest.fixture(scope="module")
def stock(newest: Newest) -> Iterator[NewestStock]:
    with NewestStock(ensure_driver(Programs(newest.bin, newest.source), DRIVER), __file__) as stock:
        yield stock


@pytest.fixture(scope="module")
def models(newest: Newest) -> Path:
    return newest.source / "models"


def random_texts(seed: str, n: int, *more: str) -> list[str]:
    """Also of what stands in `more`."""
    random_ = random.Random(seed)
    words = [
        lambda: random_.choice(WORDS),
        lambda: random_.choice(CUTS),
        lambda: chr(random_.randint(*random_.choice(BLOCKS))),
        *([lambda: random_.choice(more)] if more else []),
    ]
    return ["".join(random_.choice(words)() for _ in range(random_.randrange(1, 12))) for _ in range(n)]


def compare(stock: NewestStock, path: Path, texts: list[str]) -> None:
    tokenizer = load(path)
    assert describe(tokenizer) == stock("describe", path)
    for text in texts:
        for parse in (False, True):
            assert tokenizer.encode(text, parse_special=parse) == stock("tokenize", path, text, True, parse), text


def test_no_case_file_is_left_out(models: Path) -> None:
    assert sorted(path.name[11:-9] for path in models.glob("ggml-vocab-*.gguf.inp")) == CASES


@pytest.mark.parametrize("name", CASES)
def test_reference_cases(name: str, models: Path) -> None:
    path = models / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) > 40 and lines[len(texts) :] in ([], [""])
    tokenizer = load(path)
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special=False) == [int(i) for i in line.split()], text


@pytest.mark.parametrize("name", NEW_KINDS)
def test_vocabularies_and_random_texts(name: str, models: Path, stock: NewestStock) -> None:
    compare(stock, models / f"ggml-vocab-{name}.gguf", random_texts(name, 400))


# Vocabularies made by hand


def write(path: Path, model: str, tokens: list[str], types: list[int] | None = None, **keys: Any) -> Path:
    """A vocabulary file with all that llama.cpp wants of a llama model; `keys` under tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types or [NORMAL] * len(tokens))
    for key, value in keys.items():
        full = f"tokenizer.ggml.{key.replace('__', '.')}"
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}.get(type(value), writer.add_array)
        add(full, value)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", sorted(name for name, pre in PRE_TOKENIZERS.items() if not pre.characters))
def test_every_pre_tokenizer_of_bytes(pre: str, stock: NewestStock, models: Path, tmp_path: Path) -> None:
    """On a part of GPT-2's tokens: patterns, whether whole words need no merges, whether a BOS is added."""
    with GGUFFile.open(models / "ggml-vocab-gpt-2.gguf") as f:
        tokens, merges = (f.get_strings(f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
        unmerged = [tokens[i] for i in range(9000, 50000, 500)]  # words that merges do not reach
        path = write(tmp_path / "v.gguf", "gpt2", [*tokens[:4256], *unmerged], pre=pre, merges=list(merges[:4000]))
    words = [bytes(BYTE_CHARACTERS.index(c) for c in word).decode("utf-8", "replace") for word in unmerged]
    compare(stock, path, [*random_texts(pre, 150), *words])


LETTERS = ["a", "b", "B", "é", "日", "本", "\n", "\t", "!", "'", SPACE, "<", "0", "x"]
PAIRS = [
    "a b",
    f"{SPACE} a",
    f"{SPACE}a b",
    "日 本",
    f"{SPACE} {SPACE}",
    "\n \n",
    f"b {SPACE}",
    "x y",
    f"{SPACE} 日本",
    "b B",
]
MERGED = ["ab", f"{SPACE}a", f"{SPACE}ab", "日本", f"{SPACE}{SPACE}", f"b{SPACE}", "\n\n\n", "abb", "<s>", "<u>"]
HANDFUL = ["ab", " ab", "abB", "日本", "b a", "\n\n", "\n\n\n", "  ", "é", "xy", "aB", "\u3000", "<s>", "<u>", "ß", "İ"]


def characters(*more: str) -> tuple[list[str], list[int]]:
    tokens = [*LETTERS, *MERGED, *more]
    return tokens, [{"<s>": CONTROL, "<u>": USER_DEFINED}.get(t, BYTE if t in BYTES else NORMAL) for t in tokens]


@pytest.mark.parametrize("missing", [0, 3, 256])
@pytest.mark.parametrize("pre", sorted(name for name, pre in PRE_TOKENIZERS.items() if pre.characters))
def test_every_pre_tokenizer_of_characters(pre: str, missing: int, stock: NewestStock, tmp_path: Path) -> None:
    """With all bytes as tokens, with some, and with none."""
    model = pre if pre in ("gemma4", "whitespace") else "gpt2"
    tokens, types = characters(*BYTES[missing:])
    path = write(tmp_path / "v.gguf", model, tokens, types, pre=pre, merges=PAIRS, bos_token_id=tokens.index("<s>"))
    compare(stock, path, random_texts(f"{pre}{missing}", 150, *HANDFUL))


@pytest.mark.parametrize("crossing", [False, True])
def test_lines_are_cut_only_where_no_merge_goes_on(crossing: bool, stock: NewestStock, tmp_path: Path) -> None:
    """A merge that goes on behind a space joins words; merges stand twice, the first one counts."""
    tokens, types = characters(*BYTES)
    merges = [merge for merge in PAIRS if crossing or f" {SPACE}" not in merge[1:] or merge[0] == SPACE]
    merges = [*merges, *reversed(merges)]
    path = write(tmp_path / "v.gguf", "gemma4", tokens, types, merges=merges, bos_token_id=tokens.index("<s>"))
    compare(stock, path, random_texts(f"crossing{crossing}", 300, *HANDFUL, "b ab", "ab ab ab"))
    assert (len(load(path).encode("b ", add_special=False)) == 1) == crossing


def test_lower_case_at_white_space(stock: NewestStock, tmp_path: Path) -> None:
    tokens, types = characters(*BYTES)
    keys = {"pre": "whitespace", "merges": PAIRS, "normalizer__lowercase": True}
    path = write(tmp_path / "v.gguf", "whitespace", tokens, types, **keys)
    compare(stock, path, random_texts("lower", 150, *HANDFUL))
    assert load(path).encode("AB") == load(path).encode("ab")


WORD_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<u>", *(f"{SPACE}{c}" for c in "abcdeABCE'!.-(日éß0123456789")]
WORD_TOKENS += [*"abcdeé0123", "ab", "cde", "bcd", f"{SPACE}hello", f"{SPACE}ete", "\u0301", "ı"]


@pytest.mark.parametrize(
    "options", [{}, {"lowercase": False}, {"lowercase": False, "strip_accents": True}, {"strip_accents": False}]
)
def test_word_pieces(options: dict[str, bool], stock: NewestStock, tmp_path: Path) -> None:
    types = [{"<u>": USER_DEFINED}.get(t, CONTROL if t[0] == "[" else NORMAL) for t in WORD_TOKENS]
    ids = {"unknown_token_id": 1, "bos_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0}
    keys = {f"normalizer__{name}": value for name, value in options.items()}
    path = write(tmp_path / "v.gguf", "bert", WORD_TOKENS, types, **ids, **keys)
    compare(stock, path, random_texts(str(options), 300, *HANDFUL, "[SEP]", "abcde", "Été", "e\u0301", "hello"))


def test_every_character_is_of_the_kind_that_it_is_there(stock: NewestStock, tmp_path: Path) -> None:
    """Letters, marks, what stands alone and what is left out: of all blocks that are tried, each character between two
    letters. A character that is no token makes its word unknown, so only the number of words shows."""
    types = [CONTROL if t[0] == "[" else NORMAL for t in WORD_TOKENS]
    ids = {"unknown_token_id": 1, "bos_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0}
    path = write(tmp_path / "v.gguf", "bert", WORD_TOKENS, types, **ids)
    tokenizer = load(path)
    for low, high in sorted(set(BLOCKS)):
        text = " ".join(f"a{chr(c)}b{chr(c)}" for c in range(low, high + 1))
        assert tokenizer.encode(text) == stock("tokenize", path, text, True, False), hex(low)


UNIGRAMS = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "<s>": 0.0, "<u>": -9.0, SPACE: -3.0, f"{SPACE}ab": -4.5, "ab": -5.0,
            "a": -4.0, "b": -4.25, f"{SPACE}a": -4.0, "abB": -8.0, "B": -4.0, "日本": -6.0, "日": -7.0, f"b{SPACE}a": -7.5,
            "!": -2.0, f"{SPACE}{SPACE}": -3.5, "x": -1.5, "xx": -3.0, "unusedtoken": -1.0, "12": -2.5}  # fmt: skip


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("crossing", [True, False])
def test_unigrams_without_a_table(
    crossing: bool, prefix: bool, remove: bool, stock: NewestStock, tmp_path: Path
) -> None:
    """With a token that goes on behind a space, and without one: then words are cut each for itself."""
    scores = {text: score for text, score in UNIGRAMS.items() if crossing or SPACE not in text.lstrip(SPACE)}
    tokens = list(scores)
    kinds = {"<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN, "<s>": CONTROL, "<u>": USER_DEFINED}
    types = [kinds.get(t, UNUSED if t.startswith("unused") else NORMAL) for t in tokens]
    keys = {
        "scores": [float(s) for s in scores.values()],
        "add_space_prefix": prefix,
        "remove_extra_whitespaces": remove,
    }
    path = write(tmp_path / "v.gguf", "t5", tokens, types, bos_token_id=3, add_bos_token=prefix, **keys)
    compare(stock, path, random_texts(f"{prefix}{remove}", 300, *HANDFUL, "xxx", "unusedtoken", " !"))


def test_bytes_of_rwkv(stock: NewestStock, tmp_path: Path) -> None:
    escaped = {9: r"\t", 10: r"\n", 13: r"\r", 92: r"\\"}
    tokens = ["<s>", *(escaped.get(b) or (chr(b) if 32 <= b < 127 else rf"\x{b:02x}") for b in range(256))]
    tokens += ["ab", " ab", r"\n\n", "日本", r"\xe6\x97", "日", r"\xc3\xa9t", r"don\'t", "<u>", "Hello", "Hello wor"]
    types = [CONTROL, *[NORMAL] * (len(tokens) - 1)]
    types[tokens.index("<u>")] = USER_DEFINED
    path = write(tmp_path / "v.gguf", "rwkv", tokens, types)
    compare(stock, path, random_texts("rwkv", 300, *HANDFUL, "Hello world", "don't", "\0"))
    texts = [text for text in random_texts("again", 100) if "<" not in text]
    assert all(load(path).decode(load(path).encode(text)) == text for text in texts)


PLAMO = {"<|plamo:unk|>": 0.0, "<|plamo:bos|>": 0.0, "<|plamo:eos|>": 0.0, "<|plamo:pad|>": 0.0, "</s>": -5.0, "a": -3.0,
         "ab": -5.5, "abB": -9.0, "b": -2.5, "bB": -4.5, "日": -8.0, "日本": -9.5, " ": -1.0, "  ": -1.5, "    ": -1.25,
         "x": -999.0, "xx": -3000.0, "xxx": -500.0, "the": -4.0, "<": -3.0, "|": -3.0, "aaaa": -3.5, "\n": -2.0,
         "abc": -2000.0, "1": -2.33335, "12": -4.6667}  # fmt: skip
TAGS = [
    "<|plamo:msg|>",
    "<|plamo:bad tag|>",
    "<|plamo:",
    "aaaaa",
    "-----",
    "\n\n\n\n\n",
    "\uee00",
    "xxx",
    "the",
    "1212",
]


@pytest.mark.parametrize("model", ["plamo2", "plamo3"])
def test_plamo(model: str, stock: NewestStock, tmp_path: Path) -> None:
    tokens = [*PLAMO, *BYTES]
    types = [CONTROL] * 4 + [NORMAL] * (len(PLAMO) - 4) + [BYTE] * 256
    scores = [*(float(s) for s in PLAMO.values()), *[0.0] * 256]
    path = write(tmp_path / "v.gguf", model, tokens, types, scores=scores, add_bos_token=True)
    compare(stock, path, random_texts(model, 400, *HANDFUL, *TAGS, "\ufeffab"))


def test_plamo_cuts() -> None:
    assert plamo.segments("a<|plamo:x|>b") == ["a", "<|plamo:x|>", "b"]
    assert plamo.segments("aaaa<|plamo:x|>||||\uee00b   c\n\n\n\n") == [
        "aaaa",
        "<|plamo:x|>",
        "||||",
        "b",
        "   ",
        "c\n\n\n\n",
    ]


# Mutants: each is noticed by the comparison above


@pytest.mark.parametrize(
    ("name", "attribute", "wrong", "text"),
    [
        ("bert-bge", (wordpiece, "base_letter"), lambda c: c, "été"),
        ("bert-bge", (wordpiece, "lower"), lambda c: c, "HELLO"),
        ("nomic-bert-moe", (unigram, "SPACE"), " ", "abc"),
    ],
)
def test_mutants(
    name: str, attribute: tuple[Any, str], wrong: Any, text: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models / f"ggml-vocab-{name}.gguf"
    right = load(path).encode(text)
    monkeypatch.setattr(*attribute, wrong)
    assert load(path).encode(text) != right


# What users' files may have wrong


BYTE_TYPES = [BYTE] * 256


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": "bert", "tokens": ["a", "b"], "bos_token_id": 1}, "WordPiece vocabulary needs a SEP token"),
        (
            {"model": "t5", "tokens": ["a", "b", "c"], "token_type": [1, 3, 2], "precompiled_charsmap": "x"},
            "array of bytes",
        ),
        (
            {"model": "t5", "tokens": ["a", "b", "c"], "precompiled_charsmap": np.zeros(4, np.uint8)},
            "has 4 bytes, its table must have 0 and texts",
        ),
        ({"model": "t5", "tokens": ["a", "b", "c"], "token_type": [3, 3, 3]}, "needs normal tokens"),
        ({"model": "t5", "tokens": ["a"], "token_type": [1], "add_eos_token": False}, "needs an UNK token"),
        ({"model": "rwkv", "tokens": [r"\xg1"]}, "names no byte"),
        ({"model": "plamo2", "tokens": BYTES[1:]}, "<0x00> is none"),
        ({"model": "whitespace", "tokens": ["a"], "merges": [], "pre": "gpt-2"}, "both are to be 'whitespace'"),
        ({"model": "gpt2", "tokens": ["a"], "merges": [], "pre": "whitespace"}, "both are to be 'whitespace'"),
    ],
)
def test_bad_vocabularies_are_named(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as e:
        Tokenizer.from_metadata({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert "\n" not in str(e.value)


def test_a_table_that_leads_nowhere() -> None:
    table = np.frombuffer((4).to_bytes(4, "little") + (0x7FFFFC00).to_bytes(4, "little") + b"x\0", np.uint8)
    keys = {"model": "t5", "tokens": ["a", "b", "c"], "token_type": [1, 1, 2], "precompiled_charsmap": table}
    with pytest.raises(TokenizerError, match="leads to word"):
        Tokenizer.from_metadata({f"tokenizer.ggml.{key}": value for key, value in keys.items()}).encode("a")


def test_a_byte_that_no_token_of_rwkv_has() -> None:
    tokenizer = Tokenizer.from_metadata({"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["a", r"\n"]})
    assert tokenizer.encode("a\na") == [0, 1, 0]
    with pytest.raises(TokenizerError, match="no token for byte 0x62"):
        tokenizer.encode("ab")


def test_escapes_of_rwkv() -> None:
    assert unescaped(r"a\t\n\r\\\x7fé\'") == b"a\t\n\r\\\x7f\xc3\xa9'"
