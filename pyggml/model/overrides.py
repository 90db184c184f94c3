"""Metadata that the user replaces, and weights that the user puts elsewhere.

Owns the meaning of llama.cpp's `--override-kv` and `--override-tensor`.
"""

import re
from collections.abc import Mapping, Sequence

from pyggml.backend.base import Device
from pyggml.errors import ModelError
from pyggml.gguf import GGUFFile
from pyggml.gguf.header import ValueType
from pyggml.model.hparams import MAX_LAYERS
from pyggml.number_text import real_number, whole_number

Value = bool | int | float | str
Override = tuple[re.Pattern[str], Device]

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Weights of experts (LLM_FFN_EXPS_REGEX in llama.cpp's common/common.h)."""
DENSE = r"\.ffn_(up|down|gate)\."
"""Weights of a feed-forward network without experts (LLM_FFN_DENSE_REGEX)."""

_KINDS: dict[type, tuple[str, set[ValueType], ValueType]] = {
    bool: ("a bool", {ValueType.BOOL}, ValueType.BOOL),
    int: (
        "an integer",
        {
            *(ValueType.U8, ValueType.I8, ValueType.U16, ValueType.I16),
            *(ValueType.U32, ValueType.I32, ValueType.U64, ValueType.I64),
        },
        ValueType.I64,
    ),
    float: ("a float", {ValueType.F32, ValueType.F64}, ValueType.F64),
    str: ("a string", {ValueType.STRING}, ValueType.STRING),
}


def parse_override(text: str) -> tuple[str, Value]:
    """`KEY=TYPE:VALUE` with the types int, float, bool and str (common.cpp: string_parse_kv_override). ValueError."""
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not key or not equals or not colon or len(key.encode()) > 127:
        raise ValueError(
            "must be KEY=TYPE:VALUE, as in tokenizer.ggml.add_bos_token=bool:false, with a key of 1 to 127 bytes"
        )
    try:
        if kind == "int" and -(1 << 63) <= whole_number(value) < 1 << 63:
            return key, whole_number(value)
        if kind == "float":
            return key, real_number(value)
    except ValueError:
        raise ValueError(f"{value!r} is no {kind}") from None
    if kind == "bool" and value in ("true", "false"):
        return key, value == "true"
    if kind == "str" and len(value.encode()) <= 127:
        return key, value
    if kind in ("int", "bool", "str"):
        raise ValueError(f"{value!r:.140} is no {kind}" + (" of at most 127 bytes" if kind == "str" else ""))
    raise ValueError(f"the type is one of int, float, bool and str, not {kind!r}")


def override_metadata(file: GGUFFile, values: Mapping[str, Value]) -> None:
    """Let the keys have these values; the file on disk stays as it is. Raises ModelError where the kind is another."""
    for key, value in values.items():
        plain = next(one for one in _KINDS if isinstance(value, one))
        name, kinds, kind = _KINDS[plain]
        there = file.value_types.get(key)
        if there is not None and there not in kinds:
            raise ModelError(f"{key} is {there.name} in the file, {name} cannot take its place")
        file.metadata[key] = plain(value)
        file.value_types[key] = kind if there is None else there


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of tensor names, found anywhere in them. Raises ValueError."""
    try:
        return re.compile(pattern)
    except re.error as reason:
        raise ValueError(f"{pattern!r} is no regular expression: {reason}") from None


def device_for(name: str, overrides: Sequence[Override], otherwise: Device) -> Device:
    """Where a tensor of this name goes: as the first pattern that is found in it says."""
    return next((device for pattern, device in overrides if pattern.search(name)), otherwise)


def cpu_layers(n: int, weights: str) -> list[str]:
    """Patterns of `weights` (EXPERTS or DENSE) in the first `n` layers (llm_add_n_cpu_ffn_overrides); no model has more than
    MAX_LAYERS."""
    return [rf"blk\.{i}{weights}" for i in range(min(n, MAX_LAYERS))]
