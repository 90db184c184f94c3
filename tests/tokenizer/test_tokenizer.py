"""The byte-level BPE tokenizer against llama.cpp's own cases, the stock library, and vocabularies made by hand."""

import functools
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Peer
from vocabularies import BITS, TEXT, Stock, describe, load

from pyggml.errors import TokenizerError
from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Attr, StreamDecoder, Tokenizer, bpe
from pyggml.tokenizer.bpe import BYTE_CHARACTERS

VOCABS = ["command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe"]
VOCABS += ["mpt", "qwen2", "qwen35", "refact", "starcoder"]


@pytest.fixture(scope="session")
def vocab_file(peer: Peer):
    return lambda name: peer.vendor / "models" / f"ggml-vocab-{name}.gguf"


@pytest.fixture(scope="session")
def tokenizers():
    """load(), each file once."""
    return functools.cache(load)


@pytest.fixture(scope="session")
def smol(smollm2: Path) -> Tokenizer:
    return load(smollm2)


# llama.cpp's cases


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
        assert tokenizer.decode(ids) == text
        stream = StreamDecoder(tokenizer)
        assert "".join(stream.push(i) for i in ids) + stream.finish() == text


@pytest.fixture(scope="module")
def stock(peer: Peer):
    with Stock(peer, __file__) as stock:
        yield stock


@pytest.mark.parametrize("name", ["smollm2", "gpt-neox", *(v for v in VOCABS if v != "qwen35")])
def test_special_ids_eog_and_all_pieces_equal_the_peer(name: str, stock: Stock, vocab_file, smollm2: Path) -> None:
    path = smollm2 if name == "smollm2" else vocab_file(name)
    assert describe(load(path)) == stock("describe", path)


@pytest.mark.parametrize("name", VOCABS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_text_equals_the_peer(name: str, stock: Stock, vocab_file, tokenizers, data: st.DataObject) -> None:
    path, text = vocab_file(name), data.draw(TEXT)
    assert tokenizers(path).encode(text) == stock("tokenize", path, text, True, False)


@settings(deadline=None, max_examples=200)
@given(text=TEXT)
def test_any_text_with_smollm2_equals_the_peer(smollm2: Path, smol: Tokenizer, stock: Stock, text: str) -> None:
    ids = smol.encode(text)
    assert ids == stock("tokenize", smollm2, text, True, False)
    kept = bytes(b for b in text.encode() if BYTE_CHARACTERS[b] in smol.vocab.ids)  # the file lacks some control bytes
    assert smol.decode(ids) == kept.decode()


SPECIALS = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<reponame>", "<file_sep>", "<|im_", "|>", "<", ">"]
)


@settings(deadline=None, max_examples=200)
@given(parts=st.lists(st.one_of(SPECIALS, BITS), max_size=8), add=st.booleans(), parse=st.booleans())
def test_special_tokens_equal_the_peer(
    smollm2: Path, smol: Tokenizer, stock: Stock, parts: list[str], add: bool, parse: bool
) -> None:
    text = "".join(parts)
    assert smol.encode(text, add, parse) == stock("tokenize", smollm2, text, add, parse)


def test_a_wrong_pattern_is_noticed(smollm2: Path, stock: Stock) -> None:
    """The comparison has teeth: with another vocabulary's pattern the same texts come out otherwise."""
    with GGUFFile.open(smollm2) as f:
        wrong = Tokenizer.from_metadata({**f.metadata, "tokenizer.ggml.pre": "qwen2"})
    texts = ["  x\n\ny", "1234", "it'S", " \n a"]
    assert any(wrong.encode(text) != stock("tokenize", smollm2, text, True, False) for text in texts)


def write_vocab(path: Path, tokens: list[str], merges: list[str], pre: str, types: list[int] | None = None) -> Path:
    """A vocabulary file with all that llama.cpp wants of a llama model."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types or [1] * len(tokens))
    writer.add_token_merges(merges)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_no_pre_tokenizer_warns_and_takes_the_default(stock: Stock, vocab_file, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = load(vocab_file("gpt-neox"))
    assert "names no pre-tokenizer" in caplog.text
    for text in ["a+b=1234 <x>", "Hello  world\n\n 12345", "x`y^z"]:
        assert tokenizer.encode(text) == stock("tokenize", vocab_file("gpt-neox"), text, True, False)


# Vocabularies made by hand


def made(*more: str, merges: tuple[str, ...] = (), types: dict[str, int] | None = None, **keys: Any) -> dict[str, Any]:
    """Metadata of a vocabulary with every byte, then `more`; `types` by text, `keys` under tokenizer.ggml."""
    tokens = [*BYTE_CHARACTERS, *more]
    types = types or {}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [types.get(t, 1) for t in tokens],
        "tokenizer.ggml.merges": list(merges),
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


CONTROL, USER_DEFINED, UNUSED, BYTE, UNKNOWN = 3, 4, 5, 6, 2


def test_merges_in_their_order() -> None:
    t = Tokenizer.from_metadata(made("ab", "bc", "abc", merges=("b c", "a b", "a bc", "b c")))
    assert t.encode("abc") == [258] and t.encode("ab") == [256]
    t = Tokenizer.from_metadata(made("ab", "bc", "abc", merges=("a b", "b c", "a bc")))
    assert t.encode("abc") == [256, ord("c")] if t.vocab.ids["c"] == ord("c") else [256, t.vocab.ids["c"]]


def test_long_texts_are_cut_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    t = Tokenizer.from_metadata(made("ab", "bc", "abc", merges=("a b", "b c", "a bc")))
    text = "abc ab\n\n  bcabc 123 \u00e9\U0001f600 " * 50
    found = []
    for longest in (1, len(text) + 1):
        monkeypatch.setattr(bpe, "LONG", longest)
        found.append(t.encode(text))
    assert found[0] == found[1] and t.decode(found[0]) == text and len(found[0]) > 900


def test_special_texts_in_the_text() -> None:
    m = made("<s>", "<ss>", "<u>", "<?>", types={"<s>": CONTROL, "<ss>": CONTROL, "<u>": USER_DEFINED, "<?>": UNKNOWN})
    t = Tokenizer.from_metadata(m)
    s, ss, u, unknown = (t.vocab.ids[x] for x in ("<s>", "<ss>", "<u>", "<?>"))
    x = t.vocab.ids["x"]
    assert t.encode("x<s><u>x<ss><?>", parse_special=True) == [x, s, u, x, ss, unknown]
    assert t.encode("x<u>x") == [x, u, x]
    assert s not in t.encode("<s>") and unknown not in t.encode("<?>")
    assert t.decode([s, x, u, unknown]) == "x<u>" and t.decode([s, x, u, unknown], special=True) == "<s>x<u><?>"
    assert t.encode("") == [] and t.encode("<s>", parse_special=True) == [s]


def test_bos_and_eos(caplog: pytest.LogCaptureFixture) -> None:
    both = {"bos_token_id": 256, "eos_token_id": 257, "add_bos_token": True, "add_eos_token": True}
    t = Tokenizer.from_metadata(made("<b>", "<e>", types={"<b>": CONTROL, "<e>": CONTROL}, **both))
    assert (t.bos, t.eos, t.add_bos, t.add_eos, t.is_eog(257), t.is_eog(256)) == (256, 257, True, True, True, False)
    assert t.encode("") == [256, 257] and t.encode("", add_special=False) == []
    assert not caplog.text
    t.encode("<b>x<e>", parse_special=True)
    assert "begins with a BOS" in caplog.text and "ends with an EOS" in caplog.text
    t = Tokenizer.from_metadata(made(pre="llama-bpe"))
    assert t.add_bos and t.bos == 11  # llama.cpp's default for this kind
    assert not Tokenizer.from_metadata(made(pre="llama-bpe", add_bos_token=False)).add_bos
    assert Tokenizer.from_metadata(made(pre="glm4")).bos is None


def test_ids_beyond_the_vocabulary_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    t = Tokenizer.from_metadata(made(bos_token_id=99999, padding_token_id=1 << 31))
    assert t.bos == 11 and t.pad is None and "99999" in caplog.text


def test_end_of_generation() -> None:
    t = Tokenizer.from_metadata(made("<|im_end|>", "</s>", "<fim_pad>", "<reponame>", eos_token_id=5))
    names = {t.vocab.texts[i] for i in t.eog_ids}
    assert names == {"<|im_end|>", "</s>", "<fim_pad>", "<reponame>", t.vocab.texts[5]}
    assert t.eot == 256 and t.is_control(256) and t.fim_pad == 258
    t = Tokenizer.from_metadata(made("<|return|>", "<|call|>", "<|end|>", "<|channel|>"))
    assert t.vocab.ids["<|end|>"] not in t.eog_ids
    assert t.vocab.attrs[t.vocab.ids["<|channel|>"]] == Attr.USER_DEFINED == t.vocab.attrs[t.vocab.ids["<|end|>"]]
    t = Tokenizer.from_metadata(made("<|tool_response>", "</s>"))
    assert t.vocab.ids["</s>"] not in t.eog_ids and t.vocab.attrs[t.vocab.ids["</s>"]] == Attr.NORMAL


def test_white_space_around_special_tokens() -> None:
    types = {"<a>": CONTROL, "<s>": CONTROL}
    t = Tokenizer.from_metadata({**made("<a>", "<s>", types=types), "general.name": "Phi-3 mini"})
    a, s, x, space = (t.vocab.ids[c] for c in ("<a>", "<s>", "x", BYTE_CHARACTERS[32]))
    assert t.encode("x <a> \n x<s> x", parse_special=True) == [x, space, a, x, s, space, x]
    t = Tokenizer.from_metadata(made("<mask>", types={"<mask>": CONTROL}, pre="jina-v2-code"))
    assert t.encode("x <mask> x", parse_special=True) == [x, 256, space, x]


def test_bytes_and_odd_tokens() -> None:
    t = Tokenizer.from_metadata(made("<0xE2>", "a b", "", types={"<0xE2>": BYTE, "z": UNUSED}))
    assert t.token_bytes(256) == b"\xe2" and t.token_bytes(t.vocab.ids["z"]) == b""
    assert t.token_bytes(257) == b"a[UNK_BYTE_0x20a b]b"
    assert t.vocab.texts[258] == "[EMPTY_258]"


def test_lone_surrogates_and_bytes() -> None:
    t = Tokenizer.from_metadata(made())
    assert t.decode(t.encode("a\udc80b")) == "a\ufffdb"
    assert t.encode(b"\xe2\x82 \xc3\xa9\xff") == t.encode("\ufffd\ufffd \u00e9\ufffd")


def test_a_vocabulary_without_some_bytes_equals_the_peer(stock: Stock, tmp_path: Path) -> None:
    """Bytes and merged pieces that are no tokens: llama.cpp leaves them out, or finds their letters."""
    tokens = [c for c in BYTE_CHARACTERS if c not in "qQ\u0120\u010a"] + ["ab", "abcd", "<|x|>"]
    merges = ["a b", "c d", "ab cd", "x y", "\u0120 a"]
    path = write_vocab(tmp_path / "v.gguf", tokens, merges, "gpt-2", [1] * (len(tokens) - 1) + [CONTROL])
    tokenizer = load(path)
    for text in ["abcd", "cd", "xyxy", " abq", "a q\nQ ab", "q", "", " a", "<|x|>cd", "\n\n", "é q"]:
        assert tokenizer.encode(text, parse_special=True) == stock("tokenize", path, text, True, True), text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "llama2"}, "tokenizer 'llama2', which is not known; supported are: .*gpt2"),
        ({"tokenizer.ggml.model": None}, "no tokenizer.ggml.model; supported are"),
        (
            {"tokenizer.ggml.pre": "nonsense"},
            "pre-tokenizer 'nonsense' is not known; supported are: .*llama-bpe.*smollm",
        ),
        ({"tokenizer.ggml.pre": 3}, "tokenizer.ggml.pre must be a string, it is 3"),
        ({"tokenizer.ggml.pre": np.array([1, 2])}, r"tokenizer.ggml.pre must be a string, it is array\(\[1, 2\]\)"),
        ({"tokenizer.ggml.model": np.array([1, 2])}, r"tokenizer array\(\[1, 2\]\), which is not known; supported are"),
        ({"tokenizer.ggml.model": []}, r"tokenizer \[\], which is not known; supported are"),
        ({"tokenizer.ggml.tokens": ["long" * 99] * 2}, "tokens 0 and 1 .* are the same: '(long){9}lon$"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens must be an array of strings"),
        ({"tokenizer.ggml.merges": None}, "no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": "a b"}, "tokenizer.ggml.merges must be an array of strings"),
        ({"tokenizer.ggml.token_type": [1] * 9}, "token_type has 9 entries for 256 tokens"),
        ({"tokenizer.ggml.token_type": "x"}, "token_type must be an array of integers"),
        ({"tokenizer.ggml.bos_token_id": "1"}, "bos_token_id must be an integer"),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token must be a bool, it is 1"),
        ({"tokenizer.ggml.tokens": [*BYTE_CHARACTERS[:255], "a"]}, "tokens 97 and 255 .* are the same: 'a'|the same"),
        (
            {"tokenizer.ggml.tokens": ["<0xZZ>"], "tokenizer.ggml.token_type": [6]},
            "token 0 .* '<0xZZ>' does not name a byte",
        ),
        (
            {"tokenizer.ggml.tokens": ["<0x-1>"], "tokenizer.ggml.token_type": [6]},
            "token 0 .* '<0x-1>' does not name a byte",
        ),
        (
            {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1], "tokenizer.ggml.add_bos_token": True},
            "BOS",
        ),
    ],
)
def test_bad_vocabularies_are_named(change: dict[str, Any], message: str) -> None:
    metadata = {k: v for k, v in {**made(), **change}.items() if v is not None}
    with pytest.raises(TokenizerError, match=message) as e:
        Tokenizer.from_metadata(metadata)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("token", [-1, 256, 1 << 40])
def test_ids_outside_are_refused(token: int) -> None:
    t = Tokenizer.from_metadata(made())
    with pytest.raises(TokenizerError, match=f"token {token} is not in the vocabulary of 256"):
        t.decode([token])
    assert not t.is_eog(token)


# Streams


def test_a_stream_never_splits_a_character(smol: Tokenizer) -> None:
    text = "🦙 é日本 👩‍👩‍👧 \u0e01"
    stream = StreamDecoder(smol)
    pieces = [stream.push(i) for i in smol.encode(text)]
    assert "".join(pieces) == text and stream.finish() == ""
    assert "" in pieces and "\ufffd" not in "".join(pieces)


@settings(deadline=None, max_examples=200)
@given(raw=st.one_of(st.binary(max_size=20), TEXT.map(str.encode)))
def test_a_stream_of_any_bytes_equals_the_whole(raw: bytes) -> None:
    class Bytes:
        def token_bytes(self, token: int, special: bool = True) -> bytes:
            return bytes([token])

    stream = StreamDecoder(Bytes())
    pieces = [stream.push(b) for b in raw]
    whole = "".join(pieces) + stream.finish()
    assert whole == raw.decode("utf-8", "replace")
    assert stream.push(65) == "A"  # fit for use again


def test_a_stream_flushes_what_cannot_be_finished() -> None:
    t = Tokenizer.from_metadata(made())
    ids = t.encode("é")
    stream = StreamDecoder(t)
    assert stream.push(ids[0]) == "" and stream.finish() == "\ufffd"


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=40))
def test_round_trip(text: str) -> None:
    t = BYTES_ONLY
    assert t.decode(t.encode(text)) == text


BYTES_ONLY = Tokenizer.from_metadata(made())


# Seams


def test_importing_is_cheap() -> None:
    code = "import sys, pyggml.tokenizer; sys.exit(any(m in sys.modules for m in ('tokenizers', 'numba', 'gguf')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_kind_is_one_line_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(bpe.BPE):
        pass

    monkeypatch.setitem(Tokenizer.kinds, "other", Other)
    assert type(Tokenizer.from_metadata({**made(), "tokenizer.ggml.model": "other"})) is Other


def test_tokens_that_a_file_suppresses() -> None:
    keys = made("xx", "yy")
    n = len(keys["tokenizer.ggml.tokens"])
    assert Tokenizer.from_metadata(keys).suppressed == ()
    ids = np.array([-1, 3, n - 1, n, 3], np.int32)
    assert Tokenizer.from_metadata({**keys, "tokenizer.ggml.suppress_tokens": ids}).suppressed == (3, n - 1, 3)
    for bad in (ids.astype(np.int64), 3, ["a"]):
        with pytest.raises(TokenizerError, match=r"suppress_tokens must be an array of 32-bit integers"):
            Tokenizer.from_metadata({**keys, "tokenizer.ggml.suppress_tokens": bad})
