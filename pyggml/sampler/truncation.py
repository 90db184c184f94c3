"""Stages that cut the candidates by more than their likelihood: top-n-sigma, typical, XTC.

Owns what they drop. Formulas: llama.cpp, src/llama-sampler.cpp, `llama_sampler_<stage>_apply`.
"""

import numpy as np

from pyggml.errors import SamplerError
from pyggml.sampler.candidates import F32, Candidates, log_f32, softmax
from pyggml.sampler.params import SamplerParams
from pyggml.sampler.stages import Random, Stage
from pyggml.sampler.vocabulary import Vocabulary


class TopNSigma(Stage):
    """Bans the logits more than n standard deviations below the largest; logits of -inf do not count."""

    name = "top-n-sigma"

    def __init__(self, n: float) -> None:
        self.n = np.float32(n)
        self.disabled = bool(self.n <= 0)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "TopNSigma":
        return cls(params.top_n_sigma)

    def apply(self, c: Candidates) -> None:
        valid = c.logits[c.logits != -np.inf]
        if c.size <= 1 or not len(valid):
            return
        top, count = valid.max(), np.float32(len(valid))
        mean = np.add.accumulate(valid)[-1] / count
        squares = (valid - mean).astype(np.float64) ** 2
        std = np.sqrt(np.float32(squares.sum()) / count)
        # llama.cpp's sum runs in f32, and its rounding errors reach at most this far. Only if a logit lies between
        # what is surely kept and surely banned is the sum worth repeating in that manner.
        error = std * (len(valid) + 4) * 1.2e-7
        low, high = (top - np.float32(self.n * (std + sign * error)) for sign in (1, -1))
        if ((valid >= low) & (valid <= high)).any():
            std = np.sqrt(np.float32(_f32_sum(squares)) / count)
        c.logits = np.where(c.logits < top - self.n * std, np.float32(-np.inf), c.logits)


def _f32_sum(values: np.ndarray) -> float:
    """The sum of f64 values, in order, each partial sum rounded to f32 (by Veltkamp's splitting: three flops)."""
    total, keep = 0.0, float((1 << 29) + 1)
    for value in values.tolist():
        total += value
        wide = keep * total
        total = wide - (wide - total)
    return total


class Typical(Stage):
    """Keeps the tokens whose surprise is nearest to the entropy, until their probabilities add up to more than p.

    They come out in that order, with their probabilities. A token of probability 0 adds nothing to the entropy and
    comes last; llama.cpp's sums turn into NaN there and the order into chance.
    """

    name = "typical"

    def __init__(self, p: float, min_keep: int) -> None:
        self.p, self.min_keep = np.float32(p), min_keep
        self.disabled = bool(self.p >= 1)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "Typical":
        return cls(params.typ_p, params.min_keep)

    def apply(self, c: Candidates) -> None:
        c.sort()
        softmax(c)
        assert c.p is not None
        order = np.argsort(self._distance(c.p), kind="stable")
        over = np.add.accumulate(c.p[order]) > self.p
        over[: max(self.min_keep - 1, 0)] = False
        c.take(order[: int(over.argmax()) + 1] if over.any() else order)
        c.sorted = False

    def _distance(self, p: F32) -> F32:
        surprise = -log_f32(p)
        entropy = np.add.accumulate(p * np.where(p > 0, surprise, 0))[-1]
        distance: F32 = np.abs(surprise - entropy)
        return distance


class XTC(Random):
    """With some probability, drops the likeliest tokens down to the last one that still reaches the threshold."""

    name = "xtc"

    def __init__(self, probability: float, threshold: float, min_keep: int, seed: int) -> None:
        self.probability, self.threshold, self.min_keep = np.float32(probability), np.float32(threshold), min_keep
        self.disabled = bool(self.probability <= 0 or self.threshold > 0.5)
        super().__init__(seed)

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "XTC":
        return cls(params.xtc_probability, params.xtc_threshold, params.min_keep, params.seed)

    def apply(self, c: Candidates) -> None:
        if c.size < 2 or self._rng.uniform_f32() > self.probability:
            return
        c.sort()
        softmax(c)
        assert c.p is not None
        last = int(np.count_nonzero(c.p >= self.threshold)) - 1  # p descends
        if last > 0 and c.size - last >= self.min_keep:
            c.take(slice(last, None))


class Infill(Stage):
    """For filling in the middle: ends early where the end is likely, else merges tokens that begin alike.

    Where text is less than 3 n times as likely as the end (n candidates), only the ending tokens stay. Else each
    token's probability goes to the likelier of it and those it begins; what is then below 0.2, and of the rest below
    1 / (1 + texts left), goes; with no text left, it is the end. Leaves the probabilities, sorted before the merging.
    """

    name = "infill"

    def __init__(self, vocab: Vocabulary) -> None:
        self.vocab = vocab

    @classmethod
    def from_params(cls, params: SamplerParams, vocab: Vocabulary | None = None) -> "Infill":
        if vocab is None:
            raise SamplerError("the stage infill needs the model's vocabulary")
        return cls(vocab)

    def apply(self, c: Candidates) -> None:
        c.sort()
        softmax(c)
        assert c.p is not None
        eog = np.isin(c.ids, list(self.vocab.eog_ids))
        p_eog, p_txt = _sum(c.p[eog]), _sum(c.p[~eog])
        if np.float32(3) * p_eog * np.float32(c.size) > p_txt:
            c.take(np.flatnonzero(eog))
            c.p = c.p / _sum(c.p)
            return
        self._merge(c)
        keep = (c.p >= np.float32(0.2)) | eog
        n_text = int(np.count_nonzero(keep & ~eog))
        if not n_text:
            end = self.vocab.eot if self.vocab.eot is not None else self.vocab.eos
            if end is None:
                raise SamplerError("the stage infill needs a vocabulary with an EOT or EOS token: this one has neither")
            c.take(np.flatnonzero(keep)[:1] if keep.any() else slice(1))
            c.ids, c.logits = np.full(1, end, np.int32), np.ones(1, np.float32)
            return
        c.take(np.flatnonzero(keep))
        c.p = c.p / _sum(c.p)
        c.take(np.flatnonzero((c.p >= np.float32(1 / (n_text + 1))) | np.isin(c.ids, list(self.vocab.eog_ids))))
        c.p = c.p / _sum(c.p)

    def _merge(self, c: Candidates) -> None:
        """Moves the probability of tokens that begin others, or are begun by them, to the likelier of each two."""
        assert c.p is not None
        pieces = [self.vocab.token_bytes(int(token), special=False) for token in c.ids]
        begun: dict[bytes, list[int]] = {piece: [] for piece in pieces if piece}
        for i, piece in enumerate(pieces):
            for n in range(1, len(piece) + 1):
                if piece[:n] in begun:
                    begun[piece[:n]].append(i)
        logits, p = c.logits.copy(), c.p.copy()
        for i, piece in enumerate(pieces):
            for j in begun.get(piece, ()):
                if logits[i] == -np.inf:
                    break
                if i == j or logits[j] == -np.inf:
                    continue
                to, source = (j, i) if p[j] > p[i] else (i, j)
                p[to] += p[source]
                logits[source], p[source] = -np.inf, 0
        c.logits, c.p = logits, p


def _sum(p: F32) -> np.float32:
    """The sum in f32 and in order; 0 of nothing."""
    return np.float32(np.add.accumulate(p)[-1]) if len(p) else np.float32(0)
