"""DRY ("don't repeat yourself"): tokens that would continue a repetition lose the more, the longer it is already.

Owns the search for repetitions and the breakers that end them. Formulas: llama.cpp, src/llama-sampler.cpp,
llama_sampler_dry_apply and get_overlapping_token_sequences.
"""

import copy
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pyggml.errors import SamplerError
from pyggml.sampler.candidates import Candidates
from pyggml.sampler.params import SamplerParams
from pyggml.sampler.stages import Stage
from pyggml.sampler.vocabulary import Vocabulary

Tails = Mapping[int, frozenset[tuple[int, ...]]]  # first token of a breaker -> the tokens that complete it

_MAX_BREAKER_BYTES, _MAX_TAIL = 40, 20
_LOG_F32_MAX = np.float32(88.7228391)


def breaker_tails(vocab: Vocabulary, breakers: Iterable[str]) -> Tails:
    """The token sequences in which a breaker may appear: as part of one token, or begun by the end of one."""
    tails: dict[int, set[tuple[int, ...]]] = {}
    # detokenising drops the space that the vocabulary puts before a text
    lstrip = 1 if getattr(vocab, "add_space_prefix", False) else 0
    words = [vocab.token_bytes(token, special=True) for token in range(vocab.n_vocab)]
    words = [word[lstrip:] if word.startswith(b" ") else word for word in words]
    for breaker in breakers:
        text = breaker.encode("utf-8", "surrogateescape")[:_MAX_BREAKER_BYTES]
        if not text:
            continue
        heads = [text[:n] for n in range(len(text) - 1, 0, -1)]
        rest = {head: tuple(vocab.encode(text[len(head) :], add_special=False)[:_MAX_TAIL]) for head in heads}
        for token, word in enumerate(words):
            if text in word:
                tails.setdefault(token, set()).add(())
                continue
            for head in heads:
                if word.endswith(head):
                    tails.setdefault(token, set()).add(rest[head])
    return {token: frozenset(found) for token, found in tails.items()}


class DRY(Stage):
    """Penalises tokens that extend a repeated sequence, exponentially in its length.

    Subtracts multiplier * base ** (length - allowed_length) from the logit of a token that would continue the
    repetition of `length` tokens at the end of the last `last_n`, if it is allowed_length long. Nothing before the
    last breaker counts, and tokens that are breakers lose nothing.
    """

    name = "dry"

    def __init__(self, multiplier: float, base: float, allowed_length: int, last_n: int, tails: Tails) -> None:
        self.multiplier, self.base = np.float32(multiplier), np.float32(base)
        self.allowed_length = allowed_length
        self.disabled = not _enabled(multiplier, base, last_n)
        self._tails = tails
        self._last: deque[int] = deque(maxlen=max(last_n, 0))
        self._max_exponent = 0
        if self.base > np.float32(1.000001):
            self._max_exponent = int(_LOG_F32_MAX / np.float32(math.log(self.base)))

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "DRY":
        breakers = tuple(breaker for breaker in params.dry_sequence_breakers if breaker)
        tails: Tails = {}
        if breakers and _enabled(params.dry_multiplier, params.dry_base, params.dry_penalty_last_n):
            if vocab is None:
                raise SamplerError("--dry-sequence-breaker needs the model's vocabulary: give SamplerChain a vocab")
            tails = breaker_tails(vocab, breakers)
        length, last_n = params.dry_allowed_length, params.dry_penalty_last_n
        return cls(params.dry_multiplier, params.dry_base, length, last_n, tails)

    def accept(self, token: int) -> None:
        if not self.disabled:
            self._last.append(token)

    def apply(self, c: Candidates) -> None:
        newest_first = list(reversed(self._last))
        if len(newest_first) <= self.allowed_length:
            return
        limit = self._limit(newest_first)
        if limit < self.allowed_length:
            return
        longest: dict[int, int] = {}
        for k, length in enumerate(_common_prefixes(newest_first), 1):
            length = min(length, limit)
            token = newest_first[k - 1]  # what followed that earlier occurrence
            if length >= self.allowed_length and length > longest.get(token, -1):
                longest[token] = length
        tokens = [token for token in longest if () not in self._tails.get(token, ())]
        penalties = np.array([self._penalty(longest[token]) for token in tokens], np.float32)
        at, which = c.positions(np.array(tokens, np.int32))
        logits = c.logits.copy()
        logits[at] -= penalties[which]
        c.logits, c.sorted = logits, False

    def _limit(self, newest_first: Sequence[int]) -> int:
        """Tokens since the last breaker."""
        for i, token in enumerate(newest_first):
            matches = [
                len(tail)
                for tail in self._tails.get(token, ())
                if len(tail) <= i and list(tail) == [newest_first[i - 1 - n] for n in range(len(tail))]
            ]
            if matches:
                return i - max(matches)
        return len(newest_first)

    def _penalty(self, length: int) -> float:
        exponent = length - self.allowed_length
        if 0 < self._max_exponent < exponent:
            exponent = self._max_exponent
        return float(np.float64(self.multiplier) * np.float64(self.base) ** exponent)

    def reset(self) -> None:
        self._last.clear()

    def clone(self) -> "DRY":
        other = copy.copy(self)
        other._last = self._last.copy()
        return other


def _enabled(multiplier: float, base: float, last_n: int) -> bool:
    return bool(np.float32(multiplier) != 0 and np.float32(base) >= 1 and last_n > 0)


def _common_prefixes(items: Sequence[int]) -> list[int]:
    """For each k from 1: how long `items` and `items[k:]` are alike. The Z algorithm, linear in time."""
    n = len(items)
    z = [0] * n
    left = right = 0  # items[left:right] equals the beginning, right as far as known
    for k in range(1, n):
        length = min(z[k - left], right - k) if k < right else 0
        while k + length < n and items[length] == items[k + length]:
            length += 1
        if k + length > right:
            left, right = k, k + length
        z[k] = length
    return z[1:]
