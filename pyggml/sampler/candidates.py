"""The candidates of one draw, and the sums over them that several stages need.

Owns the struct of arrays and its arithmetic (selection, softmax).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import SamplerError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Index = NDArray[np.intp]

_ROWS = 32  # `largest` looks at the maxima of n / _ROWS columns first
_PACK_ABOVE = 1024  # longer arrays are sorted as packed integers


@dataclass(slots=True)
class Candidates:
    """Tokens still in play (llama.cpp: llama_token_data_array), as arrays of one length.

    A stage assigns new arrays and never writes into those it finds: they may be the caller's.
    `logits` hold no NaN and no +inf at the start of a chain; -inf means banned.
    """

    ids: I32
    logits: F32
    p: F32 | None = None  # probabilities, once a stage has computed them
    sorted: bool = False  # logits descend
    selected: int = -1  # position of the token chosen, not its id

    @property
    def size(self) -> int:
        """The number of tokens still in play."""
        return len(self.ids)

    def take(self, index: Index | slice) -> None:
        """Keeps the candidates at these positions, in this order."""
        self.ids = self.ids[index]
        self.logits = self.logits[index]
        if self.p is not None:
            self.p = self.p[index]

    def sort(self) -> None:
        """Sorts by descending logit; of equal ones the earlier position stays first."""
        if not self.sorted:
            self.take(descending(self.logits))
            self.sorted = True

    def positions(self, tokens: I32) -> tuple[Index, Index]:
        """Where these tokens stand: positions, and for each the index into `tokens`; absent ones are left out."""
        at = np.minimum(tokens, self.size - 1).astype(np.intp)
        hit = self.ids[at] == tokens  # true throughout while the whole vocabulary is in play
        if not hit.all():
            order = np.argsort(self.ids)
            at = order[np.minimum(np.searchsorted(self.ids, tokens, sorter=order), self.size - 1)]
            hit = self.ids[at] == tokens
        which = np.flatnonzero(hit)
        return at[which], which


def descending(logits: F32) -> Index:
    """The order of descending logits, the lower position first among equal ones; no NaN allowed.

    Long arrays are sorted as 64-bit integers, logit above position: four times as fast as a stable argsort.
    """
    n = len(logits)
    if n <= _PACK_ABOVE:
        return np.argsort(-logits, kind="stable")
    bits = (0.0 - logits).view(np.uint32)  # 0.0 - x: both zeros become +0.0
    sign = np.uint32(1 << 31)
    bits = np.where(bits & sign, ~bits, bits | sign)  # now unsigned order is the order of the floats
    keys = bits.astype(np.uint64) << np.uint64(32) | np.arange(n, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)


def largest(logits: F32, k: int) -> Index:
    """The positions of the k largest logits, in the order of `descending`; no NaN allowed.

    The maxima of n / _ROWS columns are elements too, so the k-th largest of these is a lower bound of the k-th
    largest of all. What reaches the bound is hardly more than k, and only that is sorted.
    """
    n = len(logits)
    columns = n // _ROWS
    if k >= columns // 2:
        return descending(logits)[:k]
    maxima = logits[: _ROWS * columns].reshape(_ROWS, columns).max(axis=0)
    bound = np.partition(maxima, columns - k)[columns - k]
    index = np.flatnonzero(logits >= bound)
    return index[descending(logits[index])[:k]]


def exp_shifted(c: Candidates) -> F32:
    """exp(logit - largest logit) in f32, not normalised; raises SamplerError when no token is left.

    Computed in f64 and rounded once: glibc's expf, which llama.cpp calls, is within 0.502 ulp of the same value,
    NumPy's own f32 exp only within 2.5.
    """
    top = c.logits[0] if c.sorted else c.logits.max()
    if top == -np.inf:
        raise SamplerError(f"no token is left to choose: all {c.size} candidates have a logit of -inf")
    if top == np.inf:  # overflow in an earlier stage: inf - inf would be NaN
        p: F32 = np.equal(c.logits, top).astype(np.float32)
    else:
        p = np.exp((c.logits - top).astype(np.float64)).astype(np.float32)
    return p


def log_f32(x: F32) -> F32:
    """The natural logarithm, computed in f64 and rounded once: glibc's logf is within 0.51 ulp of it."""
    out: F32 = np.log(x.astype(np.float64)).astype(np.float32)
    return out


def softmax(c: Candidates) -> None:
    """Sets `p`; the sum runs in f32 and in order (llama-sampler.cpp, llama_sampler_softmax_impl)."""
    p = exp_shifted(c)
    c.p = p / np.add.accumulate(p)[-1]
