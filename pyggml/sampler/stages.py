"""The stages of every chain: bias, penalties, top-k, top-p, min-p, temperature, the draw.

Owns what each of them does to the candidates and what it remembers. The less usual ones have files of their own:
truncation.py, dry.py, adaptive.py. Formulas: llama.cpp, src/llama-sampler.cpp, the function
`llama_sampler_<stage>_apply`. Real numbers are f32 as there. Where it leaves the order of equal logits to
std::partial_sort, here the lower token id stays first.
"""

import copy
import math
import secrets
from collections import Counter, deque
from collections.abc import Iterable
from typing import Self

import numpy as np

from pyggml.sampler.candidates import Candidates, descending, exp_shifted, largest, log_f32, softmax
from pyggml.sampler.params import LLAMA_DEFAULT_SEED, SamplerParams
from pyggml.sampler.rng import Mt19937
from pyggml.sampler.vocabulary import Vocabulary

_SORT_FIRST = 256  # top-p tries the largest 256 before it sorts everything


class Stage:
    """One step from logits to a token. A stage without memory is its own clone."""

    name = "?"
    disabled = False  # parameters under which it changes nothing: shown as "?name", never applied

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "Stage":
        """The stage with its share of the parameters. Raises SamplerError if it needs the vocabulary and has none."""
        raise NotImplementedError

    def apply(self, c: Candidates) -> None:
        """Changes the candidates; may assign to the fields of `c`, never writes into its arrays."""
        raise NotImplementedError

    def accept(self, token: int) -> None:
        """Hears of a token that joined the text, from the prompt or from a draw."""

    def reset(self) -> None:
        """Forgets every token heard of, and starts the random numbers anew."""

    def clone(self) -> "Stage":
        """A stage that goes on alike and independently."""
        return self

    def __str__(self) -> str:
        return f"?{self.name}" if self.disabled else self.name


class LogitBias(Stage):
    """Adds a constant to some tokens' logits; -inf bans a token. What is not in play stays so."""

    name = "logit-bias"

    def __init__(self, biases: Iterable[tuple[int, float]]) -> None:
        pairs = tuple(biases)
        self.tokens = np.array([token for token, _ in pairs], np.int32)
        self.biases = np.array([bias for _, bias in pairs], np.float32)
        self.disabled = not pairs

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "LogitBias":
        return cls(tuple(params.logit_bias))  # type: ignore[arg-type]  # __post_init__ has made pairs of it

    def apply(self, c: Candidates) -> None:
        at, which = c.positions(self.tokens)
        logits = c.logits.copy()
        np.add.at(logits, at, self.biases[which])
        c.logits, c.sorted = logits, False


class Penalties(Stage):
    """Makes the tokens seen among the last `last_n` less likely.

    With n occurrences: logit / repeat, or logit * repeat where it is not positive; then - (n * freq + present).
    """

    name = "penalties"

    def __init__(self, last_n: int, repeat: float, freq: float, present: float) -> None:
        self.last_n = max(last_n, 0)
        self.repeat, self.freq, self.present = np.float32(repeat), np.float32(freq), np.float32(present)
        self.disabled = self.last_n == 0 or (self.repeat == 1 and self.freq == 0 and self.present == 0)
        self._prev: deque[int] = deque()
        self._counts: Counter[int] = Counter()

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "Penalties":
        return cls(params.penalty_last_n, params.penalty_repeat, params.penalty_freq, params.penalty_present)

    def accept(self, token: int) -> None:
        if self.disabled:
            return
        if len(self._prev) == self.last_n:
            old = self._prev.popleft()
            self._counts[old] -= 1
            if not self._counts[old]:
                del self._counts[old]
        self._prev.append(token)
        self._counts[token] += 1

    def apply(self, c: Candidates) -> None:
        tokens = np.fromiter(self._counts, np.int32, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        at, which = c.positions(tokens)
        seen = c.logits[at]
        seen = np.where(seen <= 0, seen * self.repeat, seen / self.repeat)
        logits = c.logits.copy()
        logits[at] = seen - (counts[which] * self.freq + self.present)
        c.logits, c.sorted = logits, False

    def reset(self) -> None:
        self._prev.clear()
        self._counts.clear()

    def clone(self) -> "Penalties":
        other = Penalties(self.last_n, float(self.repeat), float(self.freq), float(self.present))
        other._prev, other._counts = self._prev.copy(), self._counts.copy()
        return other


class TopK(Stage):
    """Keeps the k largest logits, sorted."""

    name = "top-k"

    def __init__(self, k: int) -> None:
        self.k = k
        self.disabled = k <= 0

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "TopK":
        return cls(params.top_k)

    def apply(self, c: Candidates) -> None:
        if c.sorted:
            c.take(slice(self.k))
        else:
            c.take(largest(c.logits, self.k))
            c.sorted = True


class TopP(Stage):
    """Keeps the most likely tokens whose probabilities first add up to p; sorts, and leaves the probabilities."""

    name = "top-p"

    def __init__(self, p: float, min_keep: int) -> None:
        self.p, self.min_keep = np.float32(p), min_keep
        self.disabled = bool(self.p >= 1)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "TopP":
        return cls(params.top_p, params.min_keep)

    def apply(self, c: Candidates) -> None:
        softmax(c)  # before sorting: the sum depends on the order
        assert c.p is not None
        if c.sorted:
            c.take(slice(self._reach(np.add.accumulate(c.p))))
            return
        order = largest(c.logits, _SORT_FIRST)
        cumulated = np.add.accumulate(c.p[order])
        if cumulated[-1] < self.p or len(order) < self.min_keep:
            order = descending(c.logits)
            cumulated = np.add.accumulate(c.p[order])
        c.take(order[: self._reach(cumulated)])
        c.sorted = True

    def _reach(self, cumulated: np.ndarray) -> int:
        """How many candidates to keep: all of them if rounding keeps the sum below p."""
        return max(int(np.searchsorted(cumulated, self.p)) + 1, self.min_keep)


class MinP(Stage):
    """Keeps the tokens at least p times as likely as the most likely one."""

    name = "min-p"

    def __init__(self, p: float, min_keep: int) -> None:
        self.p, self.min_keep = np.float32(p), min_keep
        self.disabled = bool(self.p <= 0)
        self._log_p = np.float32(math.log(self.p)) if self.p > 0 else np.float32(-np.inf)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "MinP":
        return cls(params.min_p, params.min_keep)

    def apply(self, c: Candidates) -> None:
        if not c.sorted:
            keep = np.flatnonzero(c.logits >= c.logits.max() + self._log_p)
            if len(keep) >= max(self.min_keep, 1):
                c.take(keep)
                return
            c.sort()
        likely = int(np.count_nonzero(c.logits >= c.logits[0] + self._log_p))
        c.take(slice(max(likely, self.min_keep, 1)))


class PlainTemperature(Stage):
    """Divides the logits by the temperature; at 0 or below, bans all but the first of the largest."""

    name = "temp"

    def __init__(self, temp: float) -> None:
        self.temp = np.float32(temp)
        self.disabled = bool(self.temp == 1)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "PlainTemperature":
        return cls(params.temp)

    def apply(self, c: Candidates) -> None:
        self._scale(c, self.temp)

    @staticmethod
    def _scale(c: Candidates, temp: np.float32) -> None:
        if temp > 0:
            c.logits = c.logits / temp
            return
        best = int(c.logits.argmax())
        logits = np.full_like(c.logits, -np.inf)
        logits[best] = c.logits[best]
        c.logits = logits


class Temperature(PlainTemperature):
    """Divides the logits by the temperature, which may follow how even the probabilities are.

    At 0 or below it bans all but the first of the largest. With a range, it lies between temp - range and temp + range:
    (entropy / largest entropy) ** exponent of the way up. With a range it sorts, and leaves the probabilities.
    """

    name = "temp-ext"

    def __init__(self, temp: float, dynamic_range: float = 0.0, exponent: float = 1.0) -> None:
        super().__init__(temp)
        self.range, self.exponent = np.float32(dynamic_range), np.float32(exponent)
        self.disabled = self.disabled and bool(self.range <= 0)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "Temperature":
        return cls(params.temp, params.dynatemp_range, params.dynatemp_exponent)

    def apply(self, c: Candidates) -> None:
        if self.range <= 0:
            self._scale(c, self.temp)
        elif c.size > 1:
            c.sort()
            softmax(c)
            self._scale(c, self._dynamic(c))
            p = np.exp(c.logits.astype(np.float64) - np.float64(c.logits[0]))
            c.p = (p.astype(np.float32) / np.add.accumulate(p)[-1]).astype(np.float32)

    def _dynamic(self, c: Candidates) -> np.float32:
        assert c.p is not None
        p = c.p[c.p > 0]
        entropy = np.add.accumulate(-p * log_f32(p))[-1]
        most = np.float32(-math.log(np.float32(1) / np.float32(c.size)))
        low, high = max(np.float32(0), self.temp - self.range), self.temp + self.range
        return low + (high - low) * np.float32(float(entropy / most) ** float(self.exponent))


class Greedy(Stage):
    """Selects the largest logit, the first of equal ones. It needs no probabilities and draws nothing."""

    name = "greedy"

    def apply(self, c: Candidates) -> None:
        c.selected = int(c.logits.argmax())


class Random(Stage):
    """A stage that draws random numbers, from a seed of its own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        self.seed_cur = secrets.randbits(32) if self.seed == LLAMA_DEFAULT_SEED else self.seed
        self._rng = Mt19937(self.seed_cur)

    def clone(self) -> Self:
        other = copy.copy(self)
        other._rng = self._rng.clone()
        return other


class Dist(Random):
    """Selects by chance, in proportion to exp(logit), and leaves the probabilities.

    One uniform double a token, also where one candidate is left. The first candidate at which the running sum (f64,
    in the candidates' order) reaches the drawn share of the total is the one.
    """

    name = "dist"

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "Dist":
        return cls(params.seed)

    def apply(self, c: Candidates) -> None:
        p = exp_shifted(c)
        cumulated = np.add.accumulate(p, dtype=np.float64)
        total = cumulated[-1]
        share = self._rng.uniform() * total
        c.selected = min(int(np.searchsorted(cumulated, share)), c.size - 1)
        c.p = (p / total).astype(np.float32)
