"""What a request says of how tokens are chosen: names and meanings are llama-server's (tools/server/server-schema.cpp).

Owns the table of names, biases, stages and the grammar.
"""

import math
import re
from dataclasses import replace
from typing import Any

from pyggml.errors import GrammarError, SamplerError
from pyggml.grammar import json_schema_to_grammar
from pyggml.sampler import LLAMA_DEFAULT_SEED, SamplerParams, samplers_from_chars, samplers_from_names
from pyggml.tokenizer import Tokenizer
from pyggml_server.errors import RequestError
from pyggml_server.fields import LARGEST, Fields

NUMBERS = {
    "temperature": "temp",
    "top_p": "top_p",
    "min_p": "min_p",
    "top_n_sigma": "top_n_sigma",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "typical_p": "typ_p",
    "typ_p": "typ_p",
    "dynatemp_range": "dynatemp_range",
    "dynatemp_exponent": "dynatemp_exponent",
    "presence_penalty": "penalty_present",
    "frequency_penalty": "penalty_freq",
    "dry_multiplier": "dry_multiplier",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "adaptive_target": "adaptive_target",
    "adaptive_decay": "adaptive_decay",
}
"""A request's name of a number -> that of SamplerParams."""

MOST_BIASES = 1024
MOST_BREAKERS = 64
MOST_STAGES = 64
LONGEST_BIASED = 1024  # characters of a text whose tokens are biased


def sampler_params(
    fields: Fields, base: SamplerParams, tokenizer: Tokenizer, n_ctx: int, grammar: str, ignore_eos: bool
) -> SamplerParams:
    """`base` with what the request says. Raises RequestError."""
    given: dict[str, Any] = {name: fields.number(field) for field, name in NUMBERS.items() if fields.has(field)}
    if fields.has("repeat_penalty"):
        given["penalty_repeat"] = fields.number("repeat_penalty", low=1e-30)
    if fields.has("dry_base") and (factor := fields.number("dry_base")) >= 1:
        given["dry_base"] = factor
    if fields.has("top_k"):
        given["top_k"] = fields.integer("top_k")
    if fields.has("min_keep"):
        given["min_keep"] = fields.integer("min_keep", low=0)
    if fields.has("mirostat"):
        given["mirostat"] = fields.integer("mirostat", low=0, high=2)
    if fields.has("seed"):
        seed = fields.integer("seed", low=-(1 << 63), high=(1 << 64) - 1)
        given["seed"] = LLAMA_DEFAULT_SEED if seed == -1 else seed & 0xFFFFFFFF
    for field, name in (("repeat_last_n", "penalty_last_n"), ("dry_penalty_last_n", "dry_penalty_last_n")):
        if fields.has(field):
            n = fields.integer(field, low=-1)
            given[name] = n_ctx if n == -1 else n
    if fields.has("dry_allowed_length"):
        given["dry_allowed_length"] = fields.integer("dry_allowed_length")
    if fields.has("dry_sequence_breakers"):
        given["dry_sequence_breakers"] = tuple(fields.texts("dry_sequence_breakers", MOST_BREAKERS))
    if fields.has("samplers"):
        given["samplers"] = _stages(fields)
    bias = [*base.logit_bias, *_biases(fields, tokenizer)]
    if fields.boolean("ignore_eos", ignore_eos):
        bias += [(token, -math.inf) for token in sorted(tokenizer.eog_ids)]
    try:
        return replace(base, **given, logit_bias=bias, grammar=grammar)
    except SamplerError as reason:
        raise RequestError(str(reason).removeprefix("--")) from None


def _stages(fields: Fields) -> tuple[str, ...]:
    try:
        if not isinstance(letters := fields.data["samplers"], str):
            return tuple(samplers_from_names(fields.texts("samplers", MOST_STAGES)))
        if len(letters) > MOST_STAGES:
            raise RequestError(
                f"samplers has {len(letters)} letters, at most {MOST_STAGES} are taken", param="samplers"
            )
        return tuple(samplers_from_chars(letters))
    except SamplerError as reason:
        raise fields.wrong("samplers", " ".join(str(reason).split())) from None


def _biases(fields: Fields, tokenizer: Tokenizer) -> list[tuple[int, float]]:
    """`logit_bias`: {token: bias}, or pairs; a token is a number or a text, of which each token gets it; false bans."""
    if not fields.has("logit_bias"):
        return []
    value = fields.data["logit_bias"]
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise fields.wrong("logit_bias", "must be an object of tokens and numbers, or an array of such pairs")
    if len(pairs) > MOST_BIASES:
        raise RequestError(f"logit_bias has {len(pairs)} entries, at most {MOST_BIASES} are taken", param="logit_bias")
    found: list[tuple[int, float]] = []
    for token, bias in pairs:
        if bias is False:
            number = -math.inf
        elif isinstance(bias, int | float) and not isinstance(bias, bool) and abs(bias) <= LARGEST:
            number = float(bias)
        else:
            raise fields.wrong("logit_bias", "a bias must be a number, or false")
        if isinstance(token, str) and re.fullmatch(r"[0-9]{1,10}", token) and isinstance(value, dict):
            token = int(token)
        if isinstance(token, str):
            if len(token) > LONGEST_BIASED:
                raise RequestError(
                    f"logit_bias: a text of {len(token)} characters, at most {LONGEST_BIASED} are taken",
                    param="logit_bias",
                )
            found += [(t, number) for t in tokenizer.encode(token, add_special=False, parse_special=True)]
        elif isinstance(token, int) and not isinstance(token, bool) and 0 <= token < tokenizer.n_vocab:
            found.append((token, number))
        else:
            raise fields.wrong("logit_bias", f"a token must be a text, or a number below {tokenizer.n_vocab}")
    return found


def grammar_of(fields: Fields) -> str:
    """GBNF of what the answer is held to, "" for nothing: `grammar`, `json_schema` or `response_format`. Raises RequestError."""
    asked = fields.object("response_format")
    kind = None if asked is None else asked.choice("type", ("text", "json_object", "json_schema"), "text")
    given = [name for name in ("grammar", "json_schema") if fields.has(name) and fields.data[name] != ""]
    given += ["response_format"] * (kind not in (None, "text"))
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} are given: an answer is held to one of them", param=given[1])
    if not given:
        return ""
    if given == ["grammar"]:
        return str(fields.text("grammar"))
    if given == ["json_schema"]:
        return schema_grammar(fields.raw("json_schema"), fields.name("json_schema"))
    assert asked is not None
    if kind == "json_schema":
        named = asked.object("json_schema")
        if named is None:
            raise RequestError("response_format.json_schema is missing", param="response_format.json_schema")
        return schema_grammar(named.raw("schema"), named.name("schema"))
    return schema_grammar(asked.data.get("schema") or {"type": "object"}, asked.name("schema"))


def schema_grammar(schema: Any, param: str) -> str:
    """GBNF of a JSON schema. Raises RequestError."""
    if not isinstance(schema, dict | bool | str):
        raise RequestError(f"{param} must be a JSON schema", param=param)
    try:
        return json_schema_to_grammar(schema if isinstance(schema, str | dict) else "true" if schema else "false")
    except GrammarError as reason:
        raise RequestError(f"{param}: {reason}", param=param) from None
    except RecursionError:
        raise RequestError(f"{param}: is nested too deeply", param=param) from None
