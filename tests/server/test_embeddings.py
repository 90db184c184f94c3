"""Embeddings and ranks: what the routes answer is what the runtime computes."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from serving import Client, serving
from tiny_encoders import write

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.embedder import Embedder, normalised
from pyggml.runtime.ranking import TEMPLATE

TEXTS = ["hello world", "hello", "another text"]


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Client]:
    with serving(model, pooling="mean") as client:
        yield client


def wanted(model: Model, client: Client, texts: list[str], kind: int = 2) -> np.ndarray:
    embedder = Embedder(model, pooling="mean")
    found = embedder.encode([client.served.tokenizer.encode(text) for text in texts])
    embedder.close()
    return np.stack([normalised(one, kind) for one in found])


def test_embeddings(server: Client, model: Model) -> None:
    right = wanted(model, server, TEXTS)
    found = server.ok("/v1/embeddings", {"input": TEXTS})
    np.testing.assert_allclose([one["embedding"] for one in found["data"]], right, atol=1e-6)
    assert found["usage"]["prompt_tokens"] == sum(len(server.served.tokenizer.encode(text)) for text in TEXTS)
    one = server.ok("/v1/embeddings", {"input": TEXTS[0], "encoding_format": "base64"})["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(one), "<f4"), right[0], atol=1e-6)
    tokens = server.served.tokenizer.encode(TEXTS[1])
    np.testing.assert_allclose(
        server.ok("/v1/embeddings", {"input": tokens})["data"][0]["embedding"], right[1], atol=1e-6
    )
    own = server.ok("/embedding", {"content": TEXTS, "embd_normalize": -1})
    np.testing.assert_allclose([one["embedding"][0] for one in own], wanted(model, server, TEXTS, -1), rtol=1e-5)
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        made = client.embeddings.create(model="x", input=TEXTS)
    np.testing.assert_allclose([one.embedding for one in made.data], right, atol=1e-6)


def test_who_leaves_and_who_comes(server: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two micro-batches another request has its turn, and one that nobody waits for any more ends."""
    embedder = server.served.embedder
    compute, sizes = embedder._compute, []
    first, hold = threading.Event(), threading.Event()

    def slow(texts: list[np.ndarray]) -> np.ndarray:
        sizes.append(len(texts))
        first.set()
        assert hold.wait(20)
        return compute(texts)

    monkeypatch.setattr(embedder, "_compute", slow)
    link = server.connection()
    link.request("POST", "/v1/embeddings", json.dumps({"input": ["x" * 400] * 50}))
    assert first.wait(20)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.ok, "/v1/embeddings", {"input": ["y", "z"]})
        while not server.served.engine._calls:
            time.sleep(0.001)
        hold.set()
        assert len(other.result(60)["data"]) == 2
    assert 2 in sizes[:5], "it did not wait for the other 49"
    hold.clear()
    link.close()
    time.sleep(0.1)
    hold.set()
    for _ in range(3):
        server.ok("/v1/embeddings", {"input": "x"})
    assert len(sizes) < 30, "what nobody wants is not computed to its end"


@pytest.mark.parametrize("body", [
    {}, {"input": []}, {"input": ""}, {"input": ["a", ""]}, {"input": 5}, {"input": ["a", {}]}, {"input": "x" * 5000}, {"input": "x", "dimensions": 3},
    {"input": "x", "encoding_format": "odd"}, {"input": ["x"] * 3000},
], ids=lambda body: str(body)[:40])  # fmt: skip
def test_embeddings_that_are_wrong(server: Client, body: dict) -> None:
    status, found = server.post("/v1/embeddings", body)
    assert status == 400 and found["error"]["param"], found


def test_of_two_names_for_the_texts_openais_counts(server: Client) -> None:
    both = server.ok("/embedding", {"input": "hello", "content": "other"})
    assert both == server.ok("/embedding", {"content": "hello"})


def test_each_server_says_what_it_is_not(server: Client, client: Client) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
        ("/lora-adapters", []),
    ):
        assert server.post(path, body)[0] == 501, path
    assert server.get("/slots") == (200, []) and server.get("/health")[0] == 200 and server.get("/props")[0] == 200
    assert client.post("/v1/embeddings", {"input": "x"})[0] == 501


@pytest.mark.parametrize(
    ("template", "order", "scores"),
    [
        (None, [3, 1, 0, 2], [0.7066, 0.5280, 0.4947, 0.3895]),
        ("[CLS] {query} [SEP] {document} [SEP]", [1, 0, 3, 2], [0.5067, 0.5060, 0.4830, 0.3819]),
    ],
)
def test_ranks(tmp_path: Path, template: str | None, order: list[int], scores: list[float]) -> None:
    """llama-server b11549's scores: names of special tokens are plain text, but where a template is filled in."""
    metadata = {} if template is None else {TEMPLATE: template}
    write(tmp_path / "rank.gguf", "bert", vocabulary=True, metadata=metadata)
    model = Model.load(tmp_path / "rank.gguf", cpu=CPUDevice())
    with serving(model, pooling="rank") as client:
        body = {"query": "a", "documents": ["b c", "a", "c b a", "[SEP] b"]}
        whole = client.ok("/v1/rerank", body)
        found = whole["results"]
        assert [one["index"] for one in found] == order and whole["usage"]["prompt_tokens"] == 24
        np.testing.assert_allclose([one["relevance_score"] for one in found], scores, atol=1e-3)
        assert len(client.ok("/v1/rerank", {**body, "top_n": 1})["results"]) == 1
        for wrong in (
            {},
            {"query": "a"},
            {"query": "a", "documents": []},
            {"query": 3, "documents": ["x"]},
            {"query": "a", "documents": [1]},
        ):
            assert client.post("/v1/rerank", wrong)[0] == 400
    model.close()
