"""Stages that select a token by a target of their own: mirostat 1 and 2, adaptive-p.

Owns their feedback from token to token. Formulas: llama.cpp, src/llama-sampler.cpp, `llama_sampler_<stage>_apply`; all
in f32 as there.
"""

import numpy as np

from pyggml.sampler.candidates import F32, Candidates, log_f32, softmax
from pyggml.sampler.params import SamplerParams
from pyggml.sampler.rng import Mt19937
from pyggml.sampler.stages import Random
from pyggml.sampler.vocabulary import Vocabulary

_DISTRIBUTION_WIDTH, _PEAK_LOGIT_VALUE, _SHARPNESS = np.float32(0.3), np.float32(5), np.float32(10)


def discrete(p: F32, rng: Mt19937) -> int:
    """A position by chance, in proportion to p: libstdc++'s std::discrete_distribution (bits/random.tcc).

    It adds up f64 shares where Dist adds up f64 weights, and draws nothing when there is nothing to choose.
    """
    if len(p) < 2:
        return 0
    shares = p.astype(np.float64)
    cumulated = np.add.accumulate(shares / np.add.accumulate(shares)[-1])
    cumulated[-1] = 1.0
    return int(np.searchsorted(cumulated, rng.uniform()))


class MirostatV2(Random):
    """Selects among tokens not too surprising, and moves the bound so that surprise stays near tau bits."""

    name = "mirostat-v2"

    def __init__(self, seed: int, tau: float, eta: float) -> None:
        self.tau, self.eta = np.float32(tau), np.float32(eta)
        super().__init__(seed)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "MirostatV2":
        return cls(params.seed, params.mirostat_tau, params.mirostat_eta)

    def reset(self) -> None:
        super().reset()
        self.mu = np.float32(2) * self.tau

    def apply(self, c: Candidates) -> None:
        c.sort()
        softmax(c)
        c.take(slice(self._count(c)))
        softmax(c)
        assert c.p is not None
        c.selected = discrete(c.p, self._rng)
        observed = np.float32(-np.log2(np.float64(c.p[c.selected])))
        self.mu = self.mu - self.eta * (observed - self.tau)

    def _count(self, c: Candidates) -> int:
        """How many of the sorted candidates stay, at least 1."""
        assert c.p is not None
        surprising = -_log2_f32(c.p) > self.mu
        return max(int(surprising.argmax()), 1) if surprising.any() else c.size


class Mirostat(MirostatV2):
    """Selects among the k likeliest tokens, and moves k so that surprise stays near tau bits.

    k comes from mu and an estimate of Zipf's exponent over the m likeliest tokens. A number too large for an int is all of them here; llama.cpp leaves it to the processor.
    """

    name = "mirostat"

    def __init__(self, n_vocab: int, seed: int, tau: float, eta: float, m: int) -> None:
        self.n_vocab, self.m = n_vocab, m
        super().__init__(seed, tau, eta)

    def _count(self, c: Candidates) -> int:
        assert c.p is not None
        p = c.p[: self.m]
        i = np.arange(len(p) - 1, dtype=np.float32)
        t = log_f32((i + np.float32(2)) / (i + np.float32(1)))
        b = log_f32(p[:-1] / p[1:])
        if not len(t):
            return 1
        s_hat = np.add.accumulate(t * b)[-1] / np.add.accumulate(t * t)[-1]
        epsilon = s_hat - np.float32(1)
        numerator = epsilon * _pow_f32(np.float32(2), self.mu)
        k = _pow_f32(numerator / (np.float32(1) - _pow_f32(np.float32(self.n_vocab), -epsilon)), np.float32(1) / s_hat)
        if np.isnan(k):
            return 1
        return max(int(min(k, np.float32(c.size))), 1)


class AdaptiveP(Random):
    """Selects tokens whose probability is near a target, which moves against the average of those selected.

    The average decays by `decay` a token. A negative target leaves the probabilities as they are. Hears of a token
    only if it is the one it selected last.
    """

    name = "adaptive-p"

    def __init__(self, target: float, decay: float, seed: int) -> None:
        self.target = np.float32(target)
        self.decay = np.clip(np.float32(decay), np.float32(0), np.float32(0.99))
        super().__init__(seed)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "AdaptiveP":
        return cls(params.adaptive_target, params.adaptive_decay, params.seed)

    def reset(self) -> None:
        super().reset()
        self.weighted_sum = self.target / (np.float32(1) - self.decay)
        self.total_weight = np.float32(1) / (np.float32(1) - self.decay)
        self._pending: tuple[int, np.float32] | None = None  # the token selected, and how likely it was

    def apply(self, c: Candidates) -> None:
        softmax(c)
        assert c.p is not None
        if self.target < 0:
            c.selected = discrete(c.p, self._rng)
            return
        original = c.p
        target = np.clip(self.target, np.float32(0), np.float32(1))
        adapted = np.clip(np.float32(2) * target - self.weighted_sum / self.total_weight, np.float32(0), np.float32(1))
        distance = np.abs((original - adapted) * (np.float32(1) / _DISTRIBUTION_WIDTH))
        transformed = _PEAK_LOGIT_VALUE - _SHARPNESS * distance * distance / (np.float32(1) + distance)
        c.logits = np.where(c.logits == -np.inf, c.logits, transformed)
        softmax(c)  # relative to the first candidate if they were sorted, as there
        c.selected = discrete(c.p, self._rng)
        self._pending = int(c.ids[c.selected]), original[c.selected]

    def accept(self, token: int) -> None:
        if self._pending is not None and self._pending[0] == token:
            self.weighted_sum = self._pending[1] + self.decay * self.weighted_sum
            self.total_weight = np.float32(1) + self.decay * self.total_weight
        self._pending = None


def _log2_f32(x: F32) -> F32:
    out: F32 = np.log2(np.asarray(x, np.float64)).astype(np.float32)
    return out


def _pow_f32(base: np.float32, exponent: np.float32) -> np.float32:
    return np.float32(np.float64(base) ** np.float64(exponent))
