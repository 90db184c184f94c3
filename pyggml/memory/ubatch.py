"""A micro-batch: the tokens that one graph computes. Owns its arrays and what they promise; knows no memory and no graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOBODY = -1
"""The sequence of a row that fills a micro-batch up to a usual size: nothing is kept of it."""


@dataclass(frozen=True)
class Ubatch:
    """`n_seqs` sequences of equally many tokens, one after the other; or, with n_seqs = 1, tokens of any sequences.

    tokens   (n,) i32
    pos      (n,) i32, a token's position in its sequence
    seq      (n,) i32, its sequence; NOBODY for a row that only fills up
    outputs  (n,) bool, whether its logits are wanted
    """

    tokens: NDArray[np.int32]
    pos: NDArray[np.int32]
    seq: NDArray[np.int32]
    outputs: NDArray[np.bool_]
    n_seqs: int = 1
    first: int = 0
    """The stream of the first sequence, where each sequence has one of its own; row i is of stream
    first + i // (n / n_seqs)."""
    filled: bool = False
    """Whether some rows are NOBODY's."""
    one_by_one: bool = False
    """Whether each token must have the bits that it has when it is computed alone."""

    @property
    def n(self) -> int:
        return len(self.tokens)

    @property
    def n_outputs(self) -> int:
        return int(np.count_nonzero(self.outputs))
