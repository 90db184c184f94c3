"""The sampling parameters: llama.cpp's names and defaults, and what values are allowed.

Owns the numbers and the one line that refuses a bad one.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from pyggml.errors import SamplerError
from pyggml.grammar import Trigger
from pyggml.sampler.budget import BudgetParams

LLAMA_DEFAULT_SEED = 0xFFFFFFFF  # stands for "a new random seed"

DEFAULT_SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
DEFAULT_BREAKERS = ("\n", ":", '"', "*")

_I32_MAX = (1 << 31) - 1
_FLAGS = {
    "seed": "--seed",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "xtc_probability": "--xtc-probability",
    "xtc_threshold": "--xtc-threshold",
    "typ_p": "--typical",
    "temp": "--temp",
    "dynatemp_range": "--dynatemp-range",
    "dynatemp_exponent": "--dynatemp-exp",
    "penalty_last_n": "--repeat-last-n",
    "penalty_repeat": "--repeat-penalty",
    "penalty_freq": "--frequency-penalty",
    "penalty_present": "--presence-penalty",
    "dry_multiplier": "--dry-multiplier",
    "dry_base": "--dry-base",
    "dry_allowed_length": "--dry-allowed-length",
    "dry_penalty_last_n": "--dry-penalty-last-n",
    "dry_sequence_breakers": "--dry-sequence-breaker",
    "adaptive_target": "--adaptive-target",
    "adaptive_decay": "--adaptive-decay",
    "mirostat": "--mirostat",
    "mirostat_tau": "--mirostat-ent",
    "mirostat_eta": "--mirostat-lr",
    "top_n_sigma": "--top-n-sigma",
}


@dataclass(frozen=True, slots=True)
class SamplerParams:
    """llama.cpp's common_params_sampling (common/common.h), its names and defaults.

    Real numbers are used in single precision, as there. Raises SamplerError, which names flag and number.
    """

    seed: int = LLAMA_DEFAULT_SEED  # 32 bits; -1 and LLAMA_DEFAULT_SEED: random
    min_keep: int = 0  # top-p, min-p, typical and XTC leave at least this many candidates
    top_k: int = 40  # <= 0: off
    top_p: float = 0.95  # >= 1: off
    min_p: float = 0.05  # <= 0: off
    xtc_probability: float = 0.00  # <= 0: off
    xtc_threshold: float = 0.10  # > 0.5: off
    typ_p: float = 1.00  # >= 1: off
    temp: float = 0.80  # <= 0: the most likely token
    dynatemp_range: float = 0.00  # <= 0: off
    dynatemp_exponent: float = 1.00
    penalty_last_n: int = 64  # tokens looked back on; 0: off
    penalty_repeat: float = 1.00  # 1: off
    penalty_freq: float = 0.00  # 0: off
    penalty_present: float = 0.00  # 0: off
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75  # < 1: off
    dry_allowed_length: int = 2  # repetitions this long cost the multiplier, each further token the base's factor
    dry_penalty_last_n: int = 64  # tokens looked back on; 0: off
    adaptive_target: float = -1.0  # probability aimed at; < 0: any
    adaptive_decay: float = 0.90  # from 0 to 0.99
    mirostat: int = 0  # 1, 2: that version, after the bias and temperature alone; 0: off
    top_n_sigma: float = -1.00  # <= 0: off
    mirostat_tau: float = 5.00  # surprise aimed at, in bits
    mirostat_eta: float = 0.10  # learning rate
    dry_sequence_breakers: tuple[str, ...] = DEFAULT_BREAKERS  # repetitions do not reach over these texts
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()  # kept as a tuple; -inf bans; biases add
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS  # the stages between logit bias and draw
    grammar: str = ""  # GBNF; "": any text
    grammar_trigger: Trigger | None = None  # the grammar holds once this was written; None: from the beginning
    budget: BudgetParams | None = None  # how long a reply may reason; None: without end

    def __post_init__(self) -> None:
        if self.seed == -1:
            object.__setattr__(self, "seed", LLAMA_DEFAULT_SEED)
        given = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        pairs = tuple((int(token), float(bias)) for token, bias in given)
        object.__setattr__(self, "logit_bias", pairs)
        object.__setattr__(self, "samplers", tuple(self.samplers))
        if isinstance(self.dry_sequence_breakers, str) or not all(
            isinstance(text, str) for text in self.dry_sequence_breakers
        ):
            raise self._error("dry_sequence_breakers", "must be several texts")
        object.__setattr__(self, "dry_sequence_breakers", tuple(self.dry_sequence_breakers))
        self._integer("seed", 0, LLAMA_DEFAULT_SEED)
        self._integer("min_keep", 0, _I32_MAX)
        self._integer("top_k", -_I32_MAX - 1, _I32_MAX)
        self._integer("penalty_last_n", 0, _I32_MAX)
        self._integer("dry_allowed_length", -_I32_MAX - 1, _I32_MAX)
        self._integer("dry_penalty_last_n", 0, _I32_MAX)
        self._integer("mirostat", 0, 2)
        for field in fields(self):
            if field.type is float:
                self._finite(field.name)
        repeat = _f32(self.penalty_repeat)
        if repeat <= 0 or math.isinf(_f32(1 / repeat)):
            raise self._error("penalty_repeat", "must be greater than 0, with a finite inverse")
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

    def _error(self, name: str, must: str) -> SamplerError:
        return SamplerError(f"{_FLAGS.get(name, name)} {getattr(self, name)}: {must}")


def parse_logit_bias(text: str) -> tuple[int, float]:
    """The token id and bias of "15043+1", "15043-0.5" or "2-inf" (llama.cpp's --logit-bias); raises SamplerError."""
    number = r"\d+\.?\d*(?:e[+-]?\d+)?|\.\d+|inf"
    match = re.fullmatch(rf"\s*(\d{{1,18}})\s*([+-])\s*({number})\s*", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise SamplerError(f"--logit-bias {text!r}: must be a token id, a sign and a number, as in 15043-1")
    token, sign, size = match.groups()
    return int(token), -float(size) if sign == "-" else float(size)


def _f32(value: float) -> float:
    """The value that single precision keeps of it: infinite if it is too large."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
