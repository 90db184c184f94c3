"""Texts as vectors: what a `Llama` with embedding=True answers.

Owns the calls of llama_cpp.Llama that deal in embeddings, and what a reranker says of documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.api.arguments import ParameterError
from pyggml.api.chat_completion import ChatCompletions
from pyggml.api.checks import texts_of
from pyggml.model.pooling import POOLINGS
from pyggml.runtime.embedder import Embedder, normalised
from pyggml.runtime.ranking import joined

(
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_RANK,
) = range(len(POOLINGS))


class Embeddings(ChatCompletions):
    """The part of `Llama` that needs a model's embeddings, no more."""

    model_path: str
    n_batch: int
    _embedder: Embedder | None = None

    def _embeddings(self) -> Embedder:
        """Raises ParameterError; ContextError after `close`."""
        _ = self.model
        if self._embedder is None:
            raise ParameterError("this Llama computes no embeddings: make it with embedding=True")
        return self._embedder

    def pooling_type(self) -> int:
        """LLAMA_POOLING_TYPE_NONE, _MEAN, _CLS, _LAST or _RANK: how the vectors of tokens become one."""
        return POOLINGS.index(self._embeddings().pooling)

    def embed(
        self,
        input: str | Sequence[str],  # noqa: A002, its name there
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """The embedding of a text, or of each of some texts, as lists of floats; with pooling "none" one a token; of a
        classifier its scores.

        normalize     let their length be 1
        truncate      use no more than the first n_batch tokens of a text; else a longer one raises ParameterError
        return_count  -> (that, number of tokens)
        Raises ParameterError, ContextError, ComputeError.
        """
        texts = texts_of("input", input)
        ids = [self.tokenize(text.encode("utf-8", "surrogateescape")) for text in texts]
        vectors = self._encode([tokens[: self.n_batch] if truncate else tokens for tokens in ids])
        data = [self._as_list(one, normalize) for one in vectors]
        found: Any = data[0] if isinstance(input, str) else data
        count = sum(min(len(tokens), self.n_batch) for tokens in ids)
        return (found, count) if return_count else found

    def create_embedding(
        self,
        input: str | Sequence[str],  # noqa: A002, its name there
        model: str | None = None,
    ) -> dict[str, Any]:
        """OpenAI's answer: data[i]["embedding"] is that of input number i. Raises as `embed`."""
        texts = texts_of("input", input)
        found, count = self.embed(texts, return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": one, "index": i} for i, one in enumerate(found)],
            "model": self.model_path if model is None else model,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def rank(self, query: str, documents: Iterable[str]) -> list[float]:
        """What a reranker says of each document: the more, the better it answers the query; of several classes the first.
        The model must have a classifier, and pooling must be LLAMA_POOLING_TYPE_RANK. Raises ParameterError, ContextError,
        ComputeError."""
        if self.pooling_type() != LLAMA_POOLING_TYPE_RANK:
            raise ParameterError(
                f"scores need pooling_type={LLAMA_POOLING_TYPE_RANK} (rank), it is {self.pooling_type()}"
            )
        metadata = self.model.file.metadata
        texts = [joined(self._tokenizer, metadata, [query, document]) for document in documents]
        ids = [self.tokenize(text.encode("utf-8", "surrogateescape"), special=True) for text in texts]
        return [float(scores[0]) for scores in self._encode(ids)]

    def _encode(self, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        with self._turns as turns:
            turns.begin()
            embedder = self._embeddings()
            for tokens in ids:
                if len(tokens) > self.n_batch:
                    raise ParameterError(f"Requested tokens ({len(tokens)}) exceed batch size of {self.n_batch}")
            return embedder.encode(ids)

    def _as_list(self, x: NDArray[np.float32], normalize: bool) -> Any:
        if not normalize:
            return x.tolist()
        return [normalised(row).tolist() for row in x] if x.ndim == 2 else normalised(x).tolist()
