"""Logits along texts that are given: nothing is chosen. Owns which tokens' logits are asked for, and in what portions."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyggml.runtime.batch import Batch


class Decoder(Protocol):
    """What is asked of a Context."""

    @property
    def n_ubatch(self) -> int:
        """Tokens computed at a time."""

    @property
    def n_seq_max(self) -> int:
        """Texts that it can hold."""

    def clear(self) -> None:
        """Forget all tokens."""

    def decode(self, tokens: "Batch") -> "NDArray[np.float32]":
        """Compute a batch; the logits (n_out, n_vocab) of its outputs."""


def rows(
    context: Decoder, texts: "Sequence[NDArray[np.int32]]", first: int
) -> "Iterator[tuple[int, int, int, NDArray[np.float32]]]":
    """(number of the text, i, end, logits (end - i, n_vocab) after each of its tokens[i:end]), text after text, each from
    token `first` to its last; no more than a micro-batch of logits at a time.

    texts  of one length each, at most n_seq_max, computed together: they replace what the context holds
    Raises ContextError, ComputeError.
    """
    from pyggml.runtime.batch import Batch

    assert 0 < len(texts) <= context.n_seq_max, (len(texts), context.n_seq_max)
    (n,) = {len(text) for text in texts}
    assert 0 < first < n, (first, n)
    context.clear()
    context.decode(Batch.join([Batch.of(text[:first], 0, seq, "none") for seq, text in enumerate(texts)]))
    step = min(context.n_ubatch, n - first)
    together = context.n_ubatch // step  # more than one only where a text needs no second step
    for low in range(0, len(texts), together):
        seqs = range(low, min(low + together, len(texts)))
        for i in range(first, n, step):
            end = min(i + step, n)
            logits = context.decode(Batch.join([Batch.of(texts[seq][i:end], i, seq, "all") for seq in seqs]))
            for k, seq in enumerate(seqs):
                yield seq, i, end, logits[k * (end - i) : (k + 1) * (end - i)]
