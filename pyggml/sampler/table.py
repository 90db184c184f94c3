"""The stages that a user can put in order, and how users spell them.

Owns names, letters and spellings, those of llama.cpp's common/sampling.cpp.
"""

from collections.abc import Iterable

from pyggml.errors import SamplerError
from pyggml.sampler.adaptive import AdaptiveP
from pyggml.sampler.dry import DRY
from pyggml.sampler.stages import MinP, Penalties, Stage, Temperature, TopK, TopP
from pyggml.sampler.truncation import XTC, Infill, TopNSigma, Typical

STAGES: dict[str, type[Stage]] = {
    "penalties": Penalties,
    "dry": DRY,
    "top_n_sigma": TopNSigma,
    "top_k": TopK,
    "typ_p": Typical,
    "top_p": TopP,
    "min_p": MinP,
    "xtc": XTC,
    "temperature": Temperature,
    "infill": Infill,
    "adaptive_p": AdaptiveP,
}
LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "i": "infill",
    "a": "adaptive_p",
}
_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}


def samplers_from_names(names: Iterable[str]) -> tuple[str, ...]:
    """Keys of STAGES for names as users write them ("top_k", "Top-K", "topk", "temp"); raises SamplerError."""
    spelled = {key.replace("_", sign): key for key in STAGES for sign in ("_", "-", "")} | _ALIASES
    return tuple(_look_up("--samplers", spelled, name.strip().lower()) for name in names)


def samplers_from_chars(letters: str) -> tuple[str, ...]:
    """Keys of STAGES for letters (llama.cpp's --sampling-seq, as in "edskypmxt"); raises SamplerError."""
    return tuple(_look_up("--sampling-seq", LETTERS, letter) for letter in letters)


def _look_up(flag: str, known: dict[str, str], name: str) -> str:
    if name not in known:
        names = ", ".join(LETTERS) if known is LETTERS else ", ".join(STAGES)
        raise SamplerError(f"{flag}: unknown sampler {name!r} (known: {names})")
    return known[name]
