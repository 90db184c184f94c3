"""Models without a vocabulary: ids in, ids and logits out; text that is asked of them is refused in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import N_VOCAB, write_llama

from pyggml import Llama
from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import ModelError, TokenizerError
from pyggml.model.model import Model
from pyggml.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyggml.backend.cpu.CPUDevice", ReferenceDevice)


@pytest.fixture(params=["none", "no_vocab"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_llama(tmp_path / "ids.gguf", tokenizer=request.param)


@pytest.fixture
def llm(path: Path) -> Iterator[Llama]:
    with Llama(path, n_ctx=64, verbose=False) as llm:
        yield llm


def test_ids_give_ids_and_logits(llm: Llama, path: Path, tmp_path: Path) -> None:
    told = []
    with Llama(write_llama(tmp_path / "texts.gguf"), n_ctx=64, verbose=False) as other:
        for each in (llm, other):
            stream = each.generate([3, 1, 4], temp=0)
            told.append(([next(stream) for _ in range(6)], each.last_logits.copy()))
    assert told[0][0] == told[1][0]
    np.testing.assert_array_equal(told[0][1], told[1][1])
    assert llm.n_vocab() == N_VOCAB == len(llm.last_logits)
    assert (llm.token_bos(), llm.token_eos(), llm.token_nl(), llm.is_eog(1)) == (-1, -1, -1, False)


def test_the_peer_agrees(llm: Llama, path: Path, peer: Any) -> None:
    llm.eval([3, 1, 4])
    np.testing.assert_allclose(peer.logits(path, [3, 1, 4])[-1], llm.last_logits, atol=2e-2)


def test_text_is_refused(llm: Llama) -> None:
    words = r"the model has no vocabulary \(tokenizer\.ggml\.model is 'no"
    for ask in (
        lambda: llm("Hello"),
        lambda: llm([3, 1, 4]),
        lambda: llm.tokenize(b"x"),
        lambda: llm.detokenize([1]),
        lambda: llm.create_chat_completion([{"role": "user", "content": "Hi"}]),
        lambda: next(llm.generate([3], grammar='root ::= "a"')),
    ):
        with pytest.raises(TokenizerError, match=words):
            ask()
    assert llm.tokenize(b"") == [] and llm.detokenize([]) == b""


@pytest.mark.parametrize("size", [N_VOCAB - 1, N_VOCAB + 1])
def test_another_number_of_tokens_than_embeddings(size: int, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "ids.gguf", tokenizer="none", ints={"llama.vocab_size": size})
    with pytest.raises(ModelError, match=rf"must be \[64, {size}\]: vocab_size says {size} tokens"):
        Model.load(path)


def test_without_a_number_of_tokens_the_embeddings_count(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "ids.gguf", tokenizer="none", leave_out=("llama.vocab_size",))
    with Llama(path, n_ctx=64, verbose=False) as llm:
        assert llm.n_vocab() == N_VOCAB
        assert 0 <= next(llm.generate([3], temp=0)) < N_VOCAB


def test_a_bad_number_of_tokens() -> None:
    with pytest.raises(TokenizerError, match=r"llama\.vocab_size is 'x', must be a number of tokens"):
        Tokenizer.from_metadata(
            {"tokenizer.ggml.model": "none", "general.architecture": "llama", "llama.vocab_size": "x"}
        )
