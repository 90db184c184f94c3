"""Long texts merged by a compiled kernel: what can be merged with what, as numbers.

Owns the numbering of pieces. Short texts are merged by `merge_by_score` and `CharacterMerges`, which are the specification.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

LONG = 1 << 12  # characters: below, Python takes some milliseconds and needs no table


class Pairs:
    """(left piece, right piece, rank): of all neighbours the pair of the lowest rank is merged first, of equals the leftmost. A piece
    is a character, or the two of a pair together."""

    def __init__(self, pairs: Iterable[tuple[str, str, float]]) -> None:
        self._numbers: dict[str, int] = {}
        number = self._numbers.setdefault
        rows = [
            (number(left, len(self._numbers)), number(right, len(self._numbers)),
             number(left + right, len(self._numbers)), rank)
            for left, right, rank in pairs
        ]  # fmt: skip
        lefts, rights, joined, ranks = zip(*rows, strict=True) if rows else ((), (), (), ())
        keys = np.array(lefts, np.int64) << 32 | np.array(rights, np.int64)
        order = np.argsort(keys)
        self._keys = keys[order]
        self._ranks = np.unique(np.array(ranks, np.float64), return_inverse=True)[1].reshape(-1).astype(np.int32)[order]
        self._joined = np.array(joined, np.int32)[order]

    def merge(self, text: str) -> list[str]:
        """The pieces of a text that has some character."""
        from pyggml.kernels.cpu.merge import merged

        number = self._numbers.get
        starts = merged(np.array([number(c, -1) for c in text], np.int32), self._keys, self._ranks, self._joined)
        return [text[start:end] for start, end in pairwise(starts)]
