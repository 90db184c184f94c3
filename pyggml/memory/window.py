"""Sliding windows: which of the tokens before it a token sees. Knows no cell."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Positions = TypeVar("Positions", int, NDArray[np.int64])


class Window(NamedTuple):
    """llama-hparams.h: is_masked_swa.

    n        tokens that a token sees at most, itself among them
    chunked  False: the last n (LLAMA_SWA_TYPE_STANDARD); True: those since the last position that n divides
             (LLAMA_SWA_TYPE_CHUNKED)
    symmetric  n // 2 tokens before it, and as many behind it (LLAMA_SWA_TYPE_SYMMETRIC); only where no cells are kept
    """

    n: int
    chunked: bool = False
    symmetric: bool = False

    def first(self, pos: Positions) -> Positions:
        """The first position that a token at `pos` sees; below 0 where the window begins before the text."""
        if self.symmetric:
            return pos - self.n // 2
        return pos // self.n * self.n if self.chunked else pos - self.n + 1

    def shows(self, seen: NDArray[np.int64], pos: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether tokens at `pos` see those at `seen`, as far as the window says."""
        inside: NDArray[np.bool_] = seen >= self.first(pos)
        return inside & (seen <= pos + self.n // 2) if self.symmetric else inside

    def kept(self, end: int) -> int:
        """The first position that a sequence which ends here must still have: what its next token sees, and its last token,
        which tells the end."""
        return max(0, min(self.first(end), end - 1))
