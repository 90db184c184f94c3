"""Drafts: guesses at a text's next tokens, cheap to make, which the model then computes together with the token chosen last. Those that
are chosen are kept, so the text is the one that would have come without (llama.cpp: common/speculative.cpp, ngram-map.cpp): each
has the bits that it would have alone (ops/one_by_one.py).

Owns guesses from the text itself and how many are made, those of a smaller model are draft_model.py's; generate.py and batcher.py
compare them with what is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST = 7
"""Tokens of a first draft at most: the next ones go by how many were kept."""


class Adaptive:
    """How many tokens to draft: eight more after a draft that was kept whole, fewer after one that was not, so that guesses
    which fail cost little.

    most  at most so many
    """

    def __init__(self, most: int) -> None:
        self.limit = most
        self.most = min(FIRST, most)

    def kept(self, drafted: int, kept: int) -> None:
        """Of `drafted` guesses so many were right: the next time there are more or fewer."""
        if kept == drafted:
            self.most = min(self.limit, max(self.most, drafted) + 8)
        else:
            self.most = min(self.limit, max(2, kept + kept // 2))


class NgramDrafter(Adaptive):
    """The tokens that followed when the last `n` tokens stood in the text before, the last time that they did.

    m        tokens of a draft at most
    per_key  each run of `n` tokens has its own count of tokens that were kept when it was used last (ngram-map-k), not all
             together (ngram-simple)
    """

    def __init__(self, n: int = 12, m: int = 48, *, per_key: bool = False) -> None:
        assert n >= 1 and m >= 1, (n, m)
        super().__init__(m)
        self.n, self.per_key = n, per_key
        self._places: dict[tuple[int, ...], int] = {}  # where what follows a run of tokens begins
        self._counts: dict[tuple[int, ...], int] = {}
        self._known = 0  # runs that end before this token are in `_places`
        self._key: tuple[int, ...] = ()

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        n, end = self.n, len(tokens)
        if end < self._known:  # another text
            self._places.clear()
            self._known = 0
        for i in range(max(self._known, n), end):
            self._places[tuple(tokens[i - n : i])] = i
        self._known = end
        if end <= n:
            return []
        self._key = key = tuple(tokens[end - n :])
        at = self._places.get(key)
        if at is None:
            return []
        if self.per_key:
            self.most = self._counts.get(key, min(FIRST, self.limit))
        return list(tokens[at : at + min(most, self.most)])

    def kept(self, drafted: int, kept: int) -> None:
        super().kept(drafted, kept)
        if self.per_key:
            self._counts[self._key] = self.most
