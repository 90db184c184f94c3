"""How far a model's predictions are from a base model's: the sums that llama-perplexity --kl-divergence keeps.

Follows perplexity.cpp (kl_divergence, log_softmax with base_log_prob).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml.perplexity.losses import Ids, Rows, log_sums

FLOOR = np.float32(-16)  # tokens that the base model finds less likely (ln p) do not count


class Estimate(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float


def mean(values: NDArray[np.float64]) -> Estimate:
    """Of no more than ten values the error is said to be 0, as there."""
    n = len(values)
    if n == 0:
        return Estimate(0.0, 0.0)
    average = float(values.mean())
    variance = float((values * values).mean()) - average * average
    return Estimate(average, math.sqrt(variance / (n - 1)) if variance > 0 and n > 10 else 0.0)


def covariance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of the two means; 0 for fewer than ten values, as there."""
    n = len(a)
    return 0.0 if n < 10 else float((a * b).mean() - a.mean() * b.mean()) / (n - 1)


@dataclass
class Divergence:
    """Of every token scored so far: losses of both models, divergence, difference of the probabilities."""

    _parts: list[tuple[NDArray[np.float64], ...]] = field(default_factory=list)

    def add(self, logits: Rows, base: Rows, tokens: Ids) -> None:
        """logits (n, n_vocab); base: ln p (n, n_vocab); tokens (n,)."""
        rows = np.arange(len(tokens))
        most, log_sum = log_sums(logits)
        norm = most + log_sum.astype(np.float32)
        loss = norm - logits[rows, tokens]
        loss_base = -base[rows, tokens]
        likely = base > FLOOR
        terms = np.where(likely, np.exp(base) * (base - logits + norm[:, None]), np.float32(0))
        same = logits.argmax(axis=1) == base.argmax(axis=1)
        difference = np.exp(-loss) - np.exp(-loss_base)
        self._parts.append(
            (
                loss.astype(np.float64), loss_base.astype(np.float64), terms.sum(axis=1, dtype=np.float64),
                difference.astype(np.float64), same.astype(np.float64),
            )
        )  # fmt: skip

    def _all(self, i: int) -> NDArray[np.float64]:
        return np.concatenate([part[i] for part in self._parts])

    @property
    def count(self) -> int:
        """Tokens so far."""
        return sum(len(part[0]) for part in self._parts)

    @property
    def losses(self) -> NDArray[np.float64]:
        """-ln p of the token that followed, by the model."""
        return self._all(0)

    @property
    def base_losses(self) -> NDArray[np.float64]:
        """-ln p of the token that followed, by the base model."""
        return self._all(1)

    @property
    def divergences(self) -> NDArray[np.float64]:
        """Of each token the sum over the vocabulary of p_base * ln(p_base / p), in nats."""
        return self._all(2)

    @property
    def differences(self) -> NDArray[np.float64]:
        """p of the token that followed, by the model, less p by the base model."""
        return self._all(3)

    def perplexity(self) -> Estimate:
        """exp of the model's mean loss."""
        return _exponential(mean(self.losses))

    def base_perplexity(self) -> Estimate:
        """exp of the base model's mean loss."""
        return _exponential(mean(self.base_losses))

    def log_ratio(self) -> Estimate:
        """ln of the model's perplexity over the base model's."""
        a, b = mean(self.losses), mean(self.base_losses)
        return Estimate(a.value - b.value, _root(a.error**2 + b.error**2 - 2 * self.covariance()))

    def ratio(self) -> Estimate:
        """The model's perplexity over the base model's."""
        return _exponential(self.log_ratio())

    def difference(self) -> Estimate:
        """The model's perplexity less the base model's."""
        a, b = self.perplexity(), self.base_perplexity()
        return Estimate(a.value - b.value, _root(a.error**2 + b.error**2 - 2 * a.value * b.value * self.covariance()))

    def covariance(self) -> float:
        """Of the two models' mean losses."""
        return covariance(self.losses, self.base_losses)

    def correlation(self) -> float:
        """Of the two models' mean losses."""
        both = mean(self.losses).error * mean(self.base_losses).error
        return self.covariance() / both if both else math.nan

    def rms(self) -> Estimate:
        """Root of the mean square of the differences."""
        square = mean(self.differences**2)
        root = math.sqrt(square.value)
        return Estimate(root, 0.5 / root * square.error if root else 0.0)

    def same_top(self) -> Estimate:
        """How often both find the same token the most likely one."""
        share = float(self._all(4).mean())
        return Estimate(share, math.sqrt(share * (1 - share) / (self.count - 1)) if self.count > 1 else math.nan)


def percentile(values: NDArray[np.float64], fraction: float) -> float:
    """Between the two nearest of sorted values."""
    at = fraction * (len(values) - 1)
    low = int(at)
    return float((1 - (at - low)) * values[low] + (at - low) * values[min(low + 1, len(values) - 1)])


def _exponential(x: Estimate) -> Estimate:
    return Estimate(math.exp(x.value), math.exp(x.value) * x.error)


def _root(x: float) -> float:
    return math.sqrt(x) if x > 0 else 0.0
