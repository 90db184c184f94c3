"""Texts as vectors, and what a reranker says of documents: /v1/embeddings, /embedding, /v1/rerank.

Owns these routes; a request's texts are computed together, one request after another.
"""

import asyncio
import base64
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from pyggml.errors import ContextError, PyggmlError
from pyggml.runtime.embedder import Embedder, normalised
from pyggml.runtime.ranking import rank_tokens
from pyggml.runtime.timings import clock
from pyggml_server.answers import in_thread, unless_gone
from pyggml_server.errors import RequestError, unsupported, without_places
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, served_by
from pyggml_server.requests import encoded, prompt_tokens
from pyggml_server.served import Served
from pyggml_server.streams import answer

MOST_TEXTS = 2048
F32 = NDArray[np.float32]


def _embedder(served: Served, rank: bool) -> Embedder:
    if served.embedder is None:
        raise unsupported("this server makes text, no embeddings: start one with --embedding")
    if rank != (served.embedder.pooling == "rank"):
        what = "ranks nothing: start one with --rerank" if rank else "ranks documents and makes no embeddings"
        raise unsupported(f"this server {what}")
    return served.embedder


def _check_number(name: str, n: int) -> None:
    if n > MOST_TEXTS:
        raise RequestError(f"{name} has {n} texts, at most {MOST_TEXTS} are taken", param=name)


def _check(served: Served, name: str, tokens: list[int], i: int) -> None:
    if not tokens:
        raise RequestError(f"{name}[{i}] has no tokens", param=name)
    if len(tokens) > served.n_ctx:
        raise RequestError(
            f"{name}[{i}] is too large: it has {len(tokens)} tokens, at most {served.n_ctx} are computed at once (-b)",
            param=name, kind="exceed_context_size_error", n_prompt_tokens=len(tokens), n_ctx=served.n_ctx,
        )  # fmt: skip


async def _encode(request: Request, served: Served, embedder: Embedder, texts: list[list[int]]) -> list[F32]:
    """A micro-batch at a time, between which others have their turn and it is seen whether the client is still there."""
    counters = served.engine.counters

    def encode(some: list[list[int]]) -> list[F32]:
        before = clock()
        found = embedder.encode(some)
        counters.prompt_seconds += clock() - before
        counters.prompt_tokens += sum(map(len, some))
        counters.steps += 1
        return found

    async def all_of_them() -> list[F32]:
        found: list[F32] = []
        for first, end in embedder.together([len(text) for text in texts]):
            found += await asyncio.wrap_future(served.engine.call(partial(encode, texts[first:end])))
        return found

    try:
        return await unless_gone(request, all_of_them())
    except RequestError:
        raise
    except ContextError as reason:
        raise RequestError(str(reason)) from None
    except PyggmlError as reason:
        raise RequestError(f"the model could not be computed: {without_places(str(reason))}", status=500) from None


async def _vectors(request: Request, name: str, served: Served, fields: Fields) -> tuple[list[F32], int]:
    """An array of rows a text, and all tokens."""
    embedder = _embedder(served, rank=False)
    kind = fields.integer("embd_normalize", served.settings.normalize, -1)
    if embedder.pooling == "none":  # the model's own rows
        kind = -1

    def prepare() -> list[list[int]]:
        texts = prompt_tokens(served, fields, name, empty=True)
        _check_number(name, len(texts))
        for i, tokens in enumerate(texts):
            _check(served, name, tokens, i)
        return texts

    texts = await in_thread(prepare)
    found = await _encode(request, served, embedder, texts)
    rows = [np.stack([normalised(row, kind) for row in np.atleast_2d(text)]) for text in found]
    return rows, sum(map(len, texts))


async def openai(request: Request) -> Response:
    """POST /v1/embeddings."""
    served = served_by(request)
    fields = await body_of(request)
    form = fields.choice("encoding_format", ("float", "base64"), "float")
    if fields.has("dimensions"):
        raise RequestError("dimensions: vectors are as long as the model makes them", param="dimensions")
    if _embedder(served, rank=False).pooling == "none":
        raise RequestError("pooling is none here: /v1/embeddings has one vector a text, /embeddings one a token")
    rows, n = await _vectors(request, "input", served, fields)

    def shown(row: F32) -> Any:
        if form == "base64":
            return base64.b64encode(row.astype("<f4").tobytes()).decode()
        return [float(value) for value in row]

    data = [{"object": "embedding", "index": i, "embedding": shown(row[0])} for i, row in enumerate(rows)]
    return answer(
        {"object": "list", "model": served.name, "data": data, "usage": {"prompt_tokens": n, "total_tokens": n}}
    )


async def native(request: Request) -> Response:
    """POST /embedding: of each text a list of vectors: one, or without pooling one a token."""
    served = served_by(request)
    fields = await body_of(request)
    rows, _ = await _vectors(request, fields.first("input", "content"), served, fields)
    return answer([{"index": i, "embedding": [[float(v) for v in row] for row in text]} for i, text in enumerate(rows)])


async def rerank(request: Request) -> Response:
    """POST /v1/rerank: documents, those first that answer a query best."""
    served = served_by(request)
    fields = await body_of(request)
    embedder = _embedder(served, rank=True)
    name = fields.first("documents", "texts")

    def prepare() -> list[list[int]]:
        query = fields.text("query")
        documents = fields.items(name)
        if not documents or not all(isinstance(document, str) for document in documents):
            raise fields.wrong(name, "must be an array of texts, at least one")
        _check_number(name, len(documents))
        texts = []
        for i, document in enumerate(documents):  # one by one: a long query is not to be there once a document
            texts.append(
                rank_tokens(served.tokenizer, served.metadata, query, document, partial(encoded, served, name))
            )
            _check(served, name, texts[-1], i)
        return texts

    texts = await in_thread(prepare)
    scores = [float(found[0]) for found in await _encode(request, served, embedder, texts)]
    most = fields.integer("top_n", len(texts), 1)
    order = sorted(range(len(texts)), key=lambda i: -scores[i])[:most]
    n = sum(map(len, texts))
    shown = fields.boolean("return_documents", False) or fields.boolean("return_text", False)
    if name == "texts":  # the form of text-embeddings-inference
        return answer(
            [{"index": i, "score": scores[i], **({"text": fields.data[name][i]} if shown else {})} for i in order]
        )
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
    if shown:
        results = [{**one, "document": {"text": fields.data[name][one["index"]]}} for one in results]
    made = {"model": served.name, "object": "list", "usage": {"prompt_tokens": n, "total_tokens": n}}
    return answer({**made, "results": results})
