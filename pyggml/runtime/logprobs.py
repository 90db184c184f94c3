"""How likely a token was: log-probabilities from a row of logits. Owns the numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TokenLogprobs(NamedTuple):
    """ln p of a token, and (token, ln p) of the most likely ones, the first of them first."""

    value: float
    top: list[tuple[int, float]]


def log_softmax(logits: "NDArray[Any] | Sequence[float]", axis: int = -1) -> "NDArray[np.float32]":
    """In f32."""
    import numpy as np

    values = np.asarray(logits, np.float32)
    shifted = values - values.max(axis=axis, keepdims=True)
    total: NDArray[np.float32] = np.exp(shifted).sum(axis=axis, keepdims=True)
    result: NDArray[np.float32] = shifted - np.log(total)
    return result


def token_logprobs(logits: "NDArray[np.float32]", token: int, n: int) -> TokenLogprobs:
    """logits (n_vocab,): of `token`, and of the n most likely tokens."""
    import numpy as np

    row = log_softmax(logits)
    top = np.argpartition(-row, n)[:n] if n < len(row) else np.arange(len(row))
    ranked = [int(i) for i in top[np.argsort(-row[top], kind="stable")]]
    return TokenLogprobs(float(row[token]), [(i, float(row[i])) for i in ranked])


def candidate_logprobs(ids: "NDArray[np.int32]", p: "NDArray[np.float32]", token: int, n: int) -> TokenLogprobs:
    """ids, p (candidates,), the most likely first: of `token`, and of at most n that have a chance at all."""
    import numpy as np

    with np.errstate(divide="ignore"):
        row = np.log(p.astype(np.float64))
    mine = float(row[ids == token][0]) if (ids == token).any() else float("-inf")
    return TokenLogprobs(mine, [(int(ids[i]), float(row[i])) for i in range(min(n, len(ids))) if p[i] > 0])
