"""What the parameters of `Llama` and of its methods must be: one line for each that is something else.

Owns the table of kinds, by the parameters' names; ranges that depend on a model are checked where it is known.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from pyggml.api.arguments import ParameterError
from pyggml.backend.base import Device
from pyggml.dtypes import GGMLType
from pyggml.grammar import LlamaGrammar

LARGEST = (1 << 31) - 1


class ParameterTypeError(ParameterError, TypeError):
    """A parameter that is no value of its kind."""


class Kind(NamedTuple):
    """Whether a value is one, and what to say of those that are not."""

    fits: Callable[[Any], bool]
    must: str


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and -LARGEST <= int(value) <= LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not math.isnan(value)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _each(fits: Callable[[Any], bool], value: Any) -> bool:
    return (
        isinstance(value, Iterable)
        and not isinstance(value, str | bytes | Mapping | Iterator)
        and all(map(fits, value))
    )


def _is_bias(value: Any) -> bool:
    def token(key: Any) -> bool:
        return isinstance(key, Integral) or (isinstance(key, str) and key.isdecimal())

    return isinstance(value, Mapping) and all(token(key) and _is_number(bias) for key, bias in value.items())


def _is_overrides(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(one, bool | int | float | str) for key, one in value.items()
    )


def _is_tokenizer(value: Any) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("tokenize", "detokenize"))


def _is_mappings(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and _each(_is_mapping, value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_type(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) in [int(one) for one in GGMLType]


WHOLE = Kind(_is_whole, f"a whole number, at most {LARGEST}")
ANY_WHOLE = Kind(lambda value: isinstance(value, Integral), "a whole number")
NUMBER = Kind(_is_number, "a number")
TEXT = Kind(_is_text, "a text")
PATH = Kind(lambda value: isinstance(value, str | os.PathLike), "a path")
TEXTS = Kind(lambda value: _is_text(value) or _each(_is_text, value), "a text, or several")
FUNCTION = Kind(callable, "a function")
FUNCTIONS = Kind(lambda value: callable(value) or _each(callable, value), "a function, or several")
DEVICES = Kind(lambda value: _each(lambda one: isinstance(one, Device), value), "devices")
MAPPING = Kind(_is_mapping, "a dict")
MAPPINGS = Kind(_is_mappings, "a list of dicts")
NUMBERS = Kind(lambda value: _each(_is_number, value), "several numbers")
TYPE = Kind(_is_type, "the number of a type, as GGMLType has them")

KINDS: dict[str, Kind] = {
    # of the constructor
    "model_path": PATH, "n_gpu_layers": WHOLE, "split_mode": WHOLE, "main_gpu": WHOLE, "tensor_split": NUMBERS,
    "kv_overrides": Kind(_is_overrides, "a dict of texts, numbers, True and False"), "n_ctx": WHOLE, "n_batch": WHOLE, "n_ubatch": WHOLE, "n_threads": WHOLE,
    "n_threads_batch": WHOLE, "rope_scaling_type": WHOLE, "pooling_type": WHOLE, "attention_type": WHOLE,
    "rope_freq_base": NUMBER, "rope_freq_scale": NUMBER, "yarn_ext_factor": NUMBER, "yarn_attn_factor": NUMBER,
    "yarn_beta_fast": NUMBER, "yarn_beta_slow": NUMBER, "yarn_orig_ctx": WHOLE, "last_n_tokens_size": WHOLE,
    "lora_scale": NUMBER, "lora_path": PATH, "chat_format": TEXT, "type_k": TYPE, "type_v": TYPE, "rpc_servers": TEXT,
    "rpc_timeout": NUMBER, "devices": DEVICES, "chat_handler": FUNCTION, "draft_model": FUNCTION,
    "tokenizer": Kind(_is_tokenizer, "an object with the methods tokenize and detokenize"),
    # of its methods
    "suffix": TEXT, "max_tokens": ANY_WHOLE, "temperature": NUMBER, "temp": NUMBER, "top_p": NUMBER, "min_p": NUMBER,
    "typical_p": NUMBER, "logprobs": WHOLE, "top_logprobs": WHOLE, "stop": TEXTS, "frequency_penalty": NUMBER,
    "presence_penalty": NUMBER, "repeat_penalty": NUMBER, "top_k": WHOLE, "seed": ANY_WHOLE, "tfs_z": NUMBER,
    "mirostat_mode": WHOLE, "mirostat_tau": NUMBER, "mirostat_eta": NUMBER, "stopping_criteria": FUNCTIONS,
    "logits_processor": FUNCTIONS, "grammar": Kind(lambda value: isinstance(value, str | LlamaGrammar), "GBNF, or a LlamaGrammar"),
    "logit_bias": Kind(_is_bias, "a dict of tokens and numbers"), "response_format": MAPPING, "messages": MAPPINGS,
    "functions": MAPPINGS, "tools": MAPPINGS, "idx": WHOLE,
}  # fmt: skip

OPTIONAL = frozenset(
    ("model_path", "n_gpu_layers", "tensor_split", "kv_overrides", "n_threads", "n_threads_batch", "rope_scaling_type",
     "lora_path", "chat_format", "type_k", "type_v", "rpc_servers", "rpc_timeout", "devices", "suffix", "max_tokens", "logprobs",
     "top_logprobs", "stop", "seed", "stopping_criteria", "logits_processor", "grammar", "logit_bias", "response_format",
     "functions", "tools", "idx", "chat_handler", "draft_model", "tokenizer")
)  # fmt: skip
"""Where None is as not given."""


def check(given: Mapping[str, Any]) -> None:
    """Raises ParameterTypeError for the first of these that is not of its kind."""
    for name, value in given.items():
        kind = KINDS.get(name)
        if kind is None or (value is None and name in OPTIONAL) or kind.fits(value):
            continue
        raise ParameterTypeError(f"{name}={value!r:.60}: must be {kind.must}")


def tokens_of(name: str, value: Any) -> list[int]:
    """A parameter that has tokens. Raises ParameterTypeError."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and (value.dtype.kind in "iu" or not value.size):
        return [int(token) for token in value]
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        raise ParameterTypeError(f"{name}={value!r:.60}: must be tokens")
    found = list(value)
    odd = next((token for token in found if not isinstance(token, Integral)), None)
    if odd is not None or None in found:
        raise ParameterTypeError(f"{name}: {odd!r:.60} is no token: these are whole numbers")
    return [int(token) for token in found]


def texts_of(name: str, value: Any) -> list[str]:
    """A parameter that has a text, or several; bytes that are no UTF-8 may stand in them as surrogates. Raises
    ParameterTypeError."""

    def fits(one: Any) -> bool:
        return isinstance(one, str) and not any("\ud800" <= c <= "\udc7f" or "\udd00" <= c <= "\udfff" for c in one)

    several = [value] if isinstance(value, str) else value
    if not _each(fits, several):
        raise ParameterTypeError(f"{name}={value!r:.60}: must be {TEXTS.must}")
    return list(several)
