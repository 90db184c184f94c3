"""The stages of a sampler chain, and the table of those that a user can put in order.

Owns what each stage does to the candidates and what it remembers; must not know the chain around it.
Formulas: llama.cpp, src/llama-sampler.cpp, the function `llama_sampler_<stage>_apply`. Real numbers are f32 as there.
Where it leaves the order of equal logits to std::partial_sort, here the lower token id stays first.
"""

import math
import secrets
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

from pyggml.errors import SamplerError
from pyggml.sampler.candidates import Candidates, descending, exp_shifted, largest, softmax
from pyggml.sampler.params import LLAMA_DEFAULT_SEED, SamplerParams
from pyggml.sampler.rng import Mt19937

_SORT_FIRST = 256  # top-p tries the largest 256 before it sorts everything


class Stage:
    """One step from logits to a token. A stage without memory is its own clone."""

    name = "?"
    disabled = False  # parameters under which it changes nothing: shown as "?name", never applied

    @classmethod
    def from_params(cls, params: SamplerParams) -> "Stage":
        """The stage with its share of the parameters."""
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
    def from_params(cls, params: SamplerParams) -> "LogitBias":
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
    def from_params(cls, params: SamplerParams) -> "Penalties":
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
    def from_params(cls, params: SamplerParams) -> "TopK":
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
    def from_params(cls, params: SamplerParams) -> "TopP":
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
    def from_params(cls, params: SamplerParams) -> "MinP":
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


class Temperature(Stage):
    """Divides the logits by the temperature; at 0 or below, bans all but the first of the largest."""

    name = "temp-ext"

    def __init__(self, temp: float) -> None:
        self.temp = np.float32(temp)
        self.disabled = bool(self.temp == 1)

    @classmethod
    def from_params(cls, params: SamplerParams) -> "Temperature":
        return cls(params.temp)

    def apply(self, c: Candidates) -> None:
        if self.temp > 0:
            c.logits = c.logits / self.temp
            return
        best = int(c.logits.argmax())
        logits = np.full_like(c.logits, -np.inf)
        logits[best] = c.logits[best]
        c.logits = logits


class Greedy(Stage):
    """Selects the largest logit, the first of equal ones. It needs no probabilities and draws nothing."""

    name = "greedy"

    def apply(self, c: Candidates) -> None:
        c.selected = int(c.logits.argmax())


class Dist(Stage):
    """Selects by chance, in proportion to exp(logit), and leaves the probabilities.

    One uniform double a token, also where one candidate is left. The first candidate at which the running sum (f64,
    in the candidates' order) reaches the drawn share of the total is the one.
    """

    name = "dist"

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.reset()

    @classmethod
    def from_params(cls, params: SamplerParams) -> "Dist":
        return cls(params.seed)

    def apply(self, c: Candidates) -> None:
        p = exp_shifted(c)
        cumulated = np.add.accumulate(p, dtype=np.float64)
        total = cumulated[-1]
        share = self._rng.uniform() * total
        c.selected = min(int(np.searchsorted(cumulated, share)), c.size - 1)
        c.p = (p / total).astype(np.float32)

    def reset(self) -> None:
        self.seed_cur = secrets.randbits(32) if self.seed == LLAMA_DEFAULT_SEED else self.seed
        self._rng = Mt19937(self.seed_cur)

    def clone(self) -> "Dist":
        other = object.__new__(Dist)
        other.seed, other.seed_cur, other._rng = self.seed, self.seed_cur, self._rng.clone()
        return other


# What --samplers can order. Names, letters and spellings are those of llama.cpp's common/sampling.cpp.
STAGES: dict[str, type[Stage]] = {
    "penalties": Penalties,
    "top_k": TopK,
    "top_p": TopP,
    "min_p": MinP,
    "temperature": Temperature,
}
_LETTERS = {"e": "penalties", "k": "top_k", "p": "top_p", "m": "min_p", "t": "temperature"}
_ALIASES = {"nucleus": "top_p", "temp": "temperature"}


def samplers_from_names(names: Iterable[str]) -> tuple[str, ...]:
    """Keys of STAGES for names as users write them ("top_k", "Top-K", "topk", "temp"); raises SamplerError."""
    spelled = {key.replace("_", sign): key for key in STAGES for sign in ("_", "-", "")} | _ALIASES
    return tuple(_look_up("--samplers", spelled, name.strip().lower()) for name in names)


def samplers_from_chars(letters: str) -> tuple[str, ...]:
    """Keys of STAGES for letters (llama.cpp's --sampling-seq, as in "ekpmt"); raises SamplerError."""
    return tuple(_look_up("--sampling-seq", _LETTERS, letter) for letter in letters)


def _look_up(flag: str, known: dict[str, str], name: str) -> str:
    if name not in known:
        names = ", ".join(_LETTERS) if known is _LETTERS else ", ".join(STAGES)
        raise SamplerError(f"{flag}: no stage is called {name!r}; there are {names}")
    return known[name]
