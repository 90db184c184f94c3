"""From the flags of sampling to parameters: stages, biases, breakers, the grammar.

Owns that step, for every command that chooses tokens.
"""

from typing import TYPE_CHECKING, Any

from pyggml.errors import GrammarError, SamplerError
from pyggml_cli.completion_flags import unescape
from pyggml_cli.flags import UsageError, Values
from pyggml_cli.text_files import read_text

if TYPE_CHECKING:
    from pyggml.sampler import SamplerParams
    from pyggml.tokenizer import Tokenizer

_SAME_NAMES = (  # flags whose values are called as SamplerParams calls them
    *("top_n_sigma", "typ_p", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent"),
    *("dry_multiplier", "dry_allowed_length", "dry_penalty_last_n", "adaptive_target", "adaptive_decay"),
    *("mirostat", "mirostat_tau", "mirostat_eta"),
)


def sampler_params(values: Values, tokenizer: "Tokenizer", n_ctx: int) -> "SamplerParams":
    """What the flags of SAMPLING ask for. Raises UsageError."""
    from pyggml.sampler import SamplerParams, parse_logit_bias, samplers_from_chars, samplers_from_names

    try:
        stages: dict[str, Any] = {}
        if values.sampler_seq is not None:
            stages["samplers"] = samplers_from_chars(values.sampler_seq)
        if values.samplers is not None:
            stages["samplers"] = samplers_from_names(name for name in values.samplers.split(";") if name)
        if values.dry_base >= 1:
            stages["dry_base"] = values.dry_base
        if values.dry_sequence_breakers:
            stages["dry_sequence_breakers"] = _breakers(values)
        bias = [parse_logit_bias(text) for text in values.logit_bias]
        if values.ignore_eos:
            bias += [(token, float("-inf")) for token in sorted(tokenizer.eog_ids)]
        bias += [(token, float("-inf")) for token in tokenizer.suppressed]  # common/sampling.cpp
        return SamplerParams(
            seed=values.seed,
            top_k=values.top_k,
            top_p=values.top_p,
            min_p=values.min_p,
            temp=values.temp,
            penalty_last_n=values.repeat_last_n if values.repeat_last_n >= 0 else n_ctx,
            penalty_repeat=values.repeat_penalty,
            penalty_freq=values.frequency_penalty,
            penalty_present=values.presence_penalty,
            logit_bias=bias,
            grammar=_grammar(values),
            **{name: getattr(values, name) for name in _SAME_NAMES},
            **stages,
        )
    except (SamplerError, GrammarError) as reason:
        raise UsageError(str(reason)) from None


def _breakers(values: Values) -> list[str]:
    """What --dry-sequence-breaker said: "none" takes away those before it."""
    texts: list[str] = []
    for text in values.dry_sequence_breakers:
        texts = [] if text == "none" else [*texts, text]
    return [unescape(text) if values.escape else text for text in texts]


def _grammar(values: Values) -> str:
    """The grammar that the flags ask for, "" if none. Raises UsageError and GrammarError."""
    given = [name for name in ("grammar", "grammar_file", "json_schema", "json_schema_file") if name in values.seen]
    if not given:
        return ""
    if len(given) > 1:
        raise UsageError("give one of --grammar, --grammar-file, -j and -jf")
    text = str(getattr(values, given[0]))
    if given[0].endswith("_file"):
        text = read_text(text, encoding="utf-8-sig")
    if not text.strip():
        raise UsageError(f"--{given[0].replace('_', '-')}: it is empty")
    if given[0].startswith("json"):
        from pyggml.grammar import json_schema_to_grammar

        return json_schema_to_grammar(text)
    return text
