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
    """

    n: int
    chunked: bool = False

    def first(self, pos: Positions) -> Positions:
        """The first position that a token at `pos` sees; below 0 where the window begins before the text."""
        return pos // self.n * self.n if self.chunked else pos - self.n + 1

    def kept(self, end: int) -> int:
        """The first position that a sequence which ends here must still have: what its next token sees, and its last token,
        which tells the end."""
        return max(0, min(self.first(end), end - 1))
