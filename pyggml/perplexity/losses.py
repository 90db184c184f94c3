"""A text cut into chunks of the context's size, and the loss of the second half of each.

Follows tools/perplexity/perplexity.cpp (perplexity, log_softmax).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import ContextError
from pyggml.runtime.given import Decoder, rows

Rows = NDArray[np.float32]
Ids = NDArray[np.int32]

MIN_CONTEXT = 3  # tokens of a chunk: with fewer the second half predicts nothing
BATCH = 1 << 21  # logits whose exponentials are computed at a time


class Scored(NamedTuple):
    """Some rows of logits of a chunk and the tokens that followed. `chunk` counts from 0; `last`: its last rows."""

    chunk: int
    logits: Rows  # (n, n_vocab)
    tokens: Ids  # (n,)
    last: bool


def count_chunks(n_tokens: int, n_ctx: int, most: int = -1) -> int:
    """How many chunks are scored; `most` below 0: all there are. Raises ContextError when the text is too short."""
    if n_ctx < MIN_CONTEXT:
        raise ContextError(f"a context of {n_ctx} tokens predicts nothing: at least {MIN_CONTEXT} are needed")
    if n_tokens < 2 * n_ctx:
        raise ContextError(f"the text has {n_tokens} tokens; a context of {n_ctx} needs at least {2 * n_ctx}")
    n = n_tokens // n_ctx
    return n if most < 0 else min(n, most)


def score(
    context: Decoder, tokens: Sequence[int] | Ids, n_ctx: int, n_chunks: int, bos: int | None
) -> Iterator[Scored]:
    """The logits before each token of the second half of each chunk, a micro-batch at a time; as many chunks are computed
    together as the context has sequences.

    bos  replaces the first token of each chunk, where the vocabulary wants one added
    Raises ContextError, ComputeError.
    """
    ids = np.array(tokens[: n_chunks * n_ctx], np.int32).reshape(n_chunks, n_ctx)
    following = ids[:, 1:].copy()
    if bos is not None:
        ids[:, 0] = bos
    for at in range(0, n_chunks, context.n_seq_max):
        for k, i, end, logits in rows(context, list(ids[at : at + context.n_seq_max, :-1]), n_ctx // 2):
            yield Scored(at + k, logits, following[at + k, i:end], end == n_ctx - 1)


def log_sums(logits: Rows) -> tuple[Rows, NDArray[np.float64]]:
    """(n, n_vocab) -> the largest logit (n,), and ln(sum of exp(logit - largest)) (n,), as log_softmax has them."""
    most = logits.max(axis=1)
    sums = np.empty(len(logits), np.float64)
    step = max(1, BATCH // logits.shape[1])
    for i in range(0, len(logits), step):
        part = logits[i : i + step] - most[i : i + step, None]
        sums[i : i + step] = np.exp(part, out=part).sum(axis=1, dtype=np.float64)
    return most, np.log(sums)


def losses_of(logits: Rows, tokens: Ids) -> NDArray[np.float64]:
    """-ln p of each token."""
    most, log_sum = log_sums(logits)
    return log_sum - (logits[np.arange(len(tokens)), tokens] - most)


@dataclass
class Losses:
    """The losses so far."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, losses: NDArray[np.float64]) -> None:
        """Count these losses (-ln p, in nats)."""
        self.count += len(losses)
        self.total += float(losses.sum())
        self.squares += float((losses * losses).sum())

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def perplexity(self) -> float:
        """e to the mean loss."""
        return math.exp(self.mean)

    @property
    def variance(self) -> float:
        return self.squares / self.count - self.mean * self.mean

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None where rounding left no positive variance."""
        return math.sqrt(self.variance / (self.count - 1)) if self.variance > 0 and self.count > 1 else None
