"""The sampling parameters: llama.cpp's names and defaults, and what values are allowed.

Owns the numbers and the one line that refuses a bad one; must not know how a stage uses them.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pyggml.errors import SamplerError

LLAMA_DEFAULT_SEED = 0xFFFFFFFF  # stands for "a new random seed"

DEFAULT_SAMPLERS = ("penalties", "top_k", "top_p", "min_p", "temperature")

_I32_MAX = (1 << 31) - 1
_FLAGS = {
    "seed": "--seed",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "temp": "--temp",
    "penalty_last_n": "--repeat-last-n",
    "penalty_repeat": "--repeat-penalty",
    "penalty_freq": "--frequency-penalty",
    "penalty_present": "--presence-penalty",
}


@dataclass(frozen=True, slots=True)
class SamplerParams:
    """llama.cpp's common_params_sampling (common/common.h), as far as the stages here use it.

    Real numbers are used in single precision, as there. Raises SamplerError, which names flag and number.
    """

    seed: int = LLAMA_DEFAULT_SEED  # 32 bits; -1 and LLAMA_DEFAULT_SEED: random
    min_keep: int = 0  # top-p and min-p leave at least this many candidates
    top_k: int = 40  # <= 0: off
    top_p: float = 0.95  # >= 1: off
    min_p: float = 0.05  # <= 0: off
    temp: float = 0.80  # <= 0: the most likely token
    penalty_last_n: int = 64  # tokens looked back on; 0: off
    penalty_repeat: float = 1.00  # 1: off
    penalty_freq: float = 0.00  # 0: off
    penalty_present: float = 0.00  # 0: off
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()  # kept as a tuple; -inf bans; biases add
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS  # the stages between logit bias and draw

    def __post_init__(self) -> None:
        if self.seed == -1:
            object.__setattr__(self, "seed", LLAMA_DEFAULT_SEED)
        given = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        pairs = tuple((int(token), float(bias)) for token, bias in given)
        object.__setattr__(self, "logit_bias", pairs)
        object.__setattr__(self, "samplers", tuple(self.samplers))
        self._integer("seed", 0, LLAMA_DEFAULT_SEED)
        self._integer("min_keep", 0, _I32_MAX)
        self._integer("top_k", -_I32_MAX - 1, _I32_MAX)
        self._integer("penalty_last_n", 0, _I32_MAX)
        for name in ("top_p", "min_p", "temp", "penalty_repeat", "penalty_freq", "penalty_present"):
            self._finite(name)
        repeat = _f32(self.penalty_repeat)
        if repeat <= 0 or math.isinf(_f32(1 / repeat)):
            raise self._error("penalty_repeat", "must be greater than 0, and so must its inverse be finite")
        for token, bias in pairs:
            if token < 0:
                raise SamplerError(f"--logit-bias {token}{bias:+g}: a token id is not negative")
            if math.isnan(bias) or _f32(bias) == math.inf:
                raise SamplerError(f"--logit-bias {token}{bias:+g}: a bias is a finite number or -inf")

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | np.integer) or not low <= value <= high:
            raise self._error(name, f"must be a whole number from {low} to {high}")

    def _finite(self, name: str) -> None:
        if not math.isfinite(_f32(getattr(self, name))):
            raise self._error(name, "must be a finite number (single precision)")

    def _error(self, name: str, law: str) -> SamplerError:
        return SamplerError(f"{_FLAGS.get(name, name)} {getattr(self, name)}: {law}")


def parse_logit_bias(text: str) -> tuple[int, float]:
    """The token id and bias of "15043+1", "15043-0.5" or "2-inf" (llama.cpp's --logit-bias); raises SamplerError."""
    match = re.fullmatch(r"\s*(\d+)\s*([+-])\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+|inf)\s*", text, re.IGNORECASE)
    if match is None:
        raise SamplerError(f"--logit-bias {text!r}: must be a token id, a sign and a number, as in 15043-1")
    token, sign, size = match.groups()
    return int(token), -float(size) if sign == "-" else float(size)


def _f32(value: float) -> float:
    """The value that single precision keeps of it: infinite if it is too large."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
