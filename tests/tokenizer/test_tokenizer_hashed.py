"""The vocabulary of llama.cpp's test models against the stock library: texts to tokens and back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Peer
from tiny_model import write_llama
from vocabularies import Stock, describe, load


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("hashed") / "test.gguf", tokenizer="test")


@pytest.fixture(scope="module")
def stock(peer: Peer) -> Iterator[Stock]:
    with Stock(peer, __file__) as stock:
        yield stock


def test_its_tokens_are_described_alike(path: Path, stock: Stock) -> None:
    ours, theirs = describe(load(path)), stock("describe", path)
    assert ours | {"nl": theirs["nl"]} == theirs  # the peer's library has no line feed for this kind; ours hashes it
    assert load(path).token_bytes(27) == b"1b"


@given(st.text(max_size=40))
@settings(max_examples=60)
def test_texts(path: Path, stock: Stock, text: str) -> None:
    text = text.replace("\0", "0")  # the library's texts end there
    assert load(path).encode(text) == stock("tokenize", path, text, True, False)
