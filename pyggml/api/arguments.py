"""Parameters that users of llama-cpp-python know: which are carried out, and one line for every other.

Owns the table of those that change nothing and the step from sampling arguments to a SamplerChain.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import PyggmlError, SamplerError
from pyggml.grammar import LlamaGrammar
from pyggml.sampler import SamplerChain, SamplerParams, Stage, Vocabulary
from pyggml.sampler.adaptive import Mirostat, MirostatV2
from pyggml.sampler.chain import MIROSTAT_M
from pyggml.sampler.stages import LogitBias, Penalties

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
LogitsProcessor = Callable[[I32, F32], F32]
StoppingCriterion = Callable[[I32, F32], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Several functions of (input_ids, logits), each of which gets what the one before gave."""

    def __call__(self, input_ids: I32, scores: F32) -> F32:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriterion]):
    """Several functions of (input_ids, logits), one of which may end a generation."""

    def __call__(self, input_ids: I32, logits: F32) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


LLAMA_SPLIT_MODE_NONE, LLAMA_SPLIT_MODE_LAYER, LLAMA_SPLIT_MODE_ROW = 0, 1, 2
SPLIT_MODES = {LLAMA_SPLIT_MODE_NONE: "none", LLAMA_SPLIT_MODE_LAYER: "layer", LLAMA_SPLIT_MODE_ROW: "row"}
ROPE_SCALINGS = {None: None, -1: None, 0: "none", 1: "linear", 2: "yarn"}
POOLINGS = {-1: None, 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
ATTENTIONS = {-1: None, 0: True, 1: False}
"""Whether tokens see those before them alone."""
UNSPECIFIED = -1  # of llama.cpp's enums for rope scaling, pooling and attention


OLD_PARAMETERS = frozenset(
    ("n_parts", "f16_kv", "n_gqa", "rms_norm_eps", "mul_mat_q", "low_vram", "offload_kv", "ftype", "n_keep", "device")
)
"""What older programs, and LangChain, hand to llama_cpp.Llama, which drops whatever it does not know."""


class ParameterError(PyggmlError, ValueError):
    """A parameter that is out of its range, or asks for what is not there."""


class SamplingError(ParameterError, SamplerError):
    """A parameter of sampling that is out of its range."""


WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "op_offload": (None, "each operation is computed where its weights are"),
    "numa": (False, "the system places memory"),
    # of sample, generate and create_completion
    "tfs_z": (1.0, "llama.cpp has no tail-free sampling any more"),
    "penalize_nl": (True, "a line feed counts as any other token"),
}
"""Parameters that are taken and change nothing: name -> default, and why. In llama-cpp-python 0.3.36 the last two have no
effect either."""


SAMPLING = (
    *("top_k", "top_p", "min_p", "typical_p", "temp", "repeat_penalty", "frequency_penalty", "presence_penalty"),
    *("mirostat_mode", "mirostat_tau", "mirostat_eta", "grammar", "logit_bias"),
)
"""Parameters of `sampler_chain` that users give; a completion calls temp temperature."""


def without_effect(given: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for and changes nothing, and a line on each."""
    return {
        name: f"{name}={given[name]!r:.60} is without effect: {why}"
        for name, (default, why) in WITHOUT_EFFECT.items()
        if name in given and given[name] != default
    }


def unknown(name: str, known: Iterable[str]) -> str:
    """A line on a keyword that nobody knows, with the one that may be meant."""
    near = difflib.get_close_matches(name, list(known), 1, 0.85)
    return f"Llama() has no parameter {name!r}, and passes over it" + (f": is it {near[0]!r}?" if near else "")


FLAGS = {
    "typical": "typical_p",
    "repeat-last-n": "last_n_tokens_size",
    "mirostat": "mirostat_mode",
    "mirostat-ent": "mirostat_tau",
    "mirostat-lr": "mirostat_eta",
}
"""What is called otherwise on the command line, whose names the sampler's errors have."""


def without_flags(told: str) -> str:
    """An error of the sampler's that begins with a flag, with the parameter's name instead."""
    return re.sub("^--([a-z-]+)", lambda flag: FLAGS.get(flag[1], flag[1].replace("-", "_")), told)


def sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a method's parameters that `sampler_chain` takes, under its names."""
    chosen = {name: given[name] for name in SAMPLING if name in given}
    return {**chosen, "temp": given["temperature"]} if "temperature" in given else chosen


def sampler_chain(
    n_vocab: int,
    *,
    seed: int,
    last_n: int,
    top_k: int,
    top_p: float,
    min_p: float,
    temp: float,
    repeat_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    typical_p: float = 1.0,
    mirostat_mode: int = 0,
    mirostat_tau: float = 5.0,
    mirostat_eta: float = 0.1,
    logit_bias: Mapping[int, float] | None = None,
    grammar: str | LlamaGrammar | None = None,
    vocab: Vocabulary | None = None,
) -> SamplerChain:
    """The chain that llama-cpp-python builds: temp 0 is greedy, temp < 0 draws from all tokens as they are.

    Mirostat comes after the penalties and has no temperature. A grammar bans what does not fit before every draw.
    """
    if temp < 0:
        stages: tuple[str, ...] = ("penalties",)
    elif temp == 0:
        stages = ("penalties", "temperature")
    elif mirostat_mode in (1, 2):
        stages = ("penalties",)
    else:
        stages = ("penalties", "top_k", "typ_p", "top_p", "min_p", "temperature")
    params = SamplerParams(
        seed=seed,
        min_keep=1,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typ_p=typical_p,
        temp=temp,
        penalty_last_n=last_n,
        penalty_repeat=repeat_penalty,
        penalty_freq=frequency_penalty,
        penalty_present=presence_penalty,
        logit_bias=logit_bias or (),
        samplers=stages,
        mirostat=mirostat_mode,
        mirostat_tau=mirostat_tau,
        mirostat_eta=mirostat_eta,
        grammar=grammar.grammar if isinstance(grammar, LlamaGrammar) else grammar or "",
        grammar_trigger=grammar.trigger if isinstance(grammar, LlamaGrammar) else None,
    )
    chosen: list[Stage] | None = None
    if temp > 0 and mirostat_mode:
        bias = [LogitBias.from_params(params)] if logit_bias else []
        last = Mirostat(n_vocab, seed, mirostat_tau, mirostat_eta, MIROSTAT_M)
        second = MirostatV2.from_params(params)
        chosen = [*bias, Penalties.from_params(params), last if mirostat_mode == 1 else second]
    elif mirostat_mode:
        params = replace(params, mirostat=0)
    return SamplerChain(params, n_vocab, chosen, vocab, grammar_first=True)


def apply_logits_processors(
    logits: F32, input_ids: I32, processors: LogitsProcessor | Iterable[LogitsProcessor] | None
) -> F32:
    """The logits after the user's own functions, one or several; the row given is not written to."""
    if processors is None:
        return logits
    logits = logits.copy()
    for processor in [processors] if callable(processors) else processors:
        logits = np.asarray(processor(input_ids, logits), np.float32)
    return logits


def should_stop(input_ids: I32, logits: F32, criteria: StoppingCriterion | Iterable[StoppingCriterion] | None) -> bool:
    """Whether any of the user's own functions, one or several, says that it is enough."""
    if criteria is None:
        return False
    several: Iterable[StoppingCriterion] = [criteria] if callable(criteria) else criteria
    return any(bool(criterion(input_ids, logits)) for criterion in several)


class MinTokensLogitsProcessor:
    """Bans the token that ends a text until it is `min_tokens` longer than at the first call."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens, self.token_eos = min_tokens, token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: I32, scores: F32) -> F32:
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores
