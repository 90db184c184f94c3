"""Tokenizers that are gone leave nothing behind, however many words they were asked for."""

import ctypes
import gc
import random
from pathlib import Path

import pytest
from text_model import write_text_model

from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Tokenizer, bpe

WORDS, ROUNDS = 1500, 20
MOST = 1 << 20  # bytes; a cache of these words has some 0.4 MB, in each round


class _Info(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def heap() -> int:
    """Bytes that are in use of what the C library has given out (glibc: mallinfo2)."""
    info = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if info is None:
        pytest.skip("this C library has no mallinfo2")
    info.restype = _Info
    gc.collect()
    found = info()
    return int(found.uordblks + found.hblkhd)


def grown(path: Path) -> int:
    """Bytes, by so many tokenizers one after the other, each of which has seen a text."""
    rng = random.Random(3)
    text = " ".join("".join(rng.choices("abcdefghijklmnop", k=8)) for _ in range(WORDS))
    with GGUFFile.open(path) as file:
        for i in range(ROUNDS + 3):
            if i == 3:
                before = heap()
            assert len(Tokenizer.from_metadata(file.metadata).encode(text)) >= WORDS
    return heap() - before


def test_words_are_gone_with_their_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text_model(tmp_path / "m.gguf", n_ctx=64)
    assert grown(path) < MOST
    monkeypatch.setattr(bpe, "WORDS_KEPT", 10_000)  # the library's own default
    assert grown(path) > 2 * MOST, "what this test is about"
