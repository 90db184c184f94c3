"""`Llama(embedding=True)`: embed, create_embedding, rank; against llama-cpp-python where it has them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer import Peer
from peer_archs import nmse
from text_model import write_text_model
from tiny_encoders import write

from pyggml import Llama
from pyggml.api.arguments import ParameterError
from pyggml.errors import ContextError, UnsupportedError
from pyggml.model.model import Model
from pyggml.runtime.embedder import Embedder

TEXTS = ["a cat", "the dog barking", "er."]
THEIRS = """
import json, sys
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=128, n_batch=128, embedding=True, pooling_type=int(sys.argv[2]), verbose=False)
texts = json.loads(sys.argv[3])
print(json.dumps({
    "one": llm.embed(texts[0]), "each": [llm.embed(text, normalize=True) for text in texts],
    "counted": llm.embed(texts[1], return_count=True)[1], "answer": llm.create_embedding(texts[1]),
    "pooling": llm.pooling_type(), "n_embd": llm.n_embd(),
}))
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    write(path, "bert", vocabulary=True)
    return path


@pytest.fixture
def llm(bert: Path) -> Iterator[Llama]:
    with Llama(bert, n_ctx=128, embedding=True, verbose=False) as made:
        yield made


@pytest.mark.parametrize("pooling", [0, 1, 2, 3])
def test_answers_are_llama_cpp_pythons(pooling: int, bert: Path, peer: Peer) -> None:
    command = [sys.executable, "-c", THEIRS, str(bert), str(pooling), json.dumps(TEXTS)]
    done = subprocess.run(command, env=peer.env, capture_output=True, text=True, check=True, timeout=120)
    theirs = json.loads(done.stdout.splitlines()[-1])
    with Llama(bert, n_ctx=128, n_batch=128, embedding=True, pooling_type=pooling, verbose=False) as llm:
        assert (llm.pooling_type(), llm.n_embd()) == (theirs["pooling"], theirs["n_embd"])
        assert nmse(np.array(theirs["one"]), np.array(llm.embed(TEXTS[0]))) < 5e-7
        for mine, other in zip(llm.embed(TEXTS, normalize=True), theirs["each"], strict=True):
            assert np.shape(mine) == np.shape(other) and nmse(np.array(other), np.array(mine)) < 5e-7
        assert llm.embed(TEXTS[1], return_count=True)[1] == theirs["counted"]
        answer = llm.create_embedding(TEXTS[1])
        both: tuple[Any, Any] = answer, theirs["answer"]
        mine, other = (np.array(one["data"][0].pop("embedding")) for one in both)
        assert answer == theirs["answer"] and nmse(other, mine) < 5e-7


def test_several_texts_in_one_call(llm: Llama) -> None:
    answer = llm.create_embedding(TEXTS, model="name")
    assert [one["index"] for one in answer["data"]] == [0, 1, 2] and answer["model"] == "name"
    assert answer["usage"]["prompt_tokens"] == sum(len(llm.tokenize(text.encode())) for text in TEXTS)
    alone = [llm.embed(text) for text in TEXTS]
    assert nmse(np.array(alone), np.array([one["embedding"] for one in answer["data"]])) < 5e-7
    assert llm.embed([]) == []


def test_long_texts(bert: Path) -> None:
    with Llama(bert, n_ctx=16, embedding=True, verbose=False) as llm:
        long = "a cat " * 20
        first = llm.tokenize(long.encode())[:16]
        found, count = llm.embed(long, return_count=True)
        model = Model.load(bert)
        embedder = Embedder(model)
        assert count == 16 and nmse(embedder.encode([first])[0], np.array(found)) < 5e-7
        embedder.close(), model.close()
        with pytest.raises(ParameterError, match=r"Requested tokens \(42\) exceed batch size of 16"):
            llm.embed(long, truncate=False)


def test_ranks(bert: Path) -> None:
    with Llama(bert, n_ctx=128, embedding=True, pooling_type=4, verbose=False) as llm:
        assert llm.rank("a cat", []) == []
        scores = llm.rank("a cat", ["the dog", "a cat"])
        ids = [llm.tokenize(text, special=True) for text in (b"a cat[SEP]the dog", b"a cat[SEP]a cat")]
        model = Model.load(bert)
        embedder = Embedder(model, pooling="rank")
        expected = embedder.encode(ids)
        assert np.allclose(scores, [one[0] for one in expected], atol=1e-3) and len(llm.embed("a cat")) == 3
        embedder.close(), model.close()
    with (
        Llama(bert, n_ctx=128, embedding=True, verbose=False) as llm,
        pytest.raises(ParameterError, match="pooling_type=4"),
    ):
        llm.rank("a", ["b"])


def test_a_model_that_generates_does_both(tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "m.gguf")
    with Llama(path, n_ctx=64, embedding=True, pooling_type=3, verbose=False) as llm:
        before = llm("hello", max_tokens=4, temperature=0)["choices"][0]["text"]
        vector = llm.embed("hello")
        assert len(vector) == llm.n_embd() and np.allclose(vector, llm.embed(["x", "hello"])[1], atol=1e-3)
        assert llm("hello", max_tokens=4, temperature=0)["choices"][0]["text"] == before
    with pytest.raises(ContextError, match="closed"):
        llm.embed("hello")


def test_after_a_fork(llm: Llama) -> None:
    expected = llm.embed("a cat")
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if llm.embed("a cat") == expected else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert llm.embed("a cat") == expected


def test_what_is_not_possible_is_said(bert: Path, tmp_path: Path, llm: Llama) -> None:
    for use in (lambda: llm("x"), lambda: llm.eval([1]), lambda: llm.n_tokens, lambda: llm.scores):
        with pytest.raises(ContextError, match="a bert model makes embeddings and no text"):
            use()
    with pytest.raises(ParameterError, match="give embedding=True"):
        Llama(bert, verbose=False)
    path = write_text_model(tmp_path / "m.gguf")
    with (
        Llama(path, n_ctx=64, verbose=False) as other,
        pytest.raises(ParameterError, match="make it with embedding=True"),
    ):
        other.embed("x")
    for options, message in (
        ({"pooling_type": 1}, "pooling_type=1 counts for embeddings: give embedding=True too"),
        ({"embedding": True, "pooling_type": 7}, "pooling_type=7 is not known"),
        ({"embedding": True, "attention_type": 7}, "attention_type=7 is not known"),
    ):
        with pytest.raises(ParameterError, match=message):
            Llama(path, verbose=False, **options)
    with pytest.raises((ContextError, UnsupportedError), match="needs a classifier"):
        Llama(path, embedding=True, pooling_type=4, verbose=False)
