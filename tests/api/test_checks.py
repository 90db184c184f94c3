"""What is no value of its kind is refused in one line that names the parameter, whatever method it is given to."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyggml import Llama, LlamaGrammar
from pyggml.api import checks
from pyggml.api.checks import KINDS, OPTIONAL, ParameterTypeError, check
from pyggml.errors import GrammarError

METHODS: dict[str, dict[str, Any]] = {
    "create_completion": {"prompt": "x"},
    "create_chat_completion": {"messages": [{"role": "user", "content": "x"}]},
    "sample": {},
    "generate": {"tokens": [65]},
}
ODD: list[Any] = [object(), float("nan"), b"x", {"x": "y"}, [None], ("\ud800",), True, 1 << 80, iter(())]


def named(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name in KINDS]


def test_every_parameter_has_a_kind() -> None:
    """But those that are true or false, or anything, and those that are checked where they are used."""
    other = {"self", "prompt", "tokens", "input", "old", "progress", "model", "lora_base",
             "tool_choice", "function_call"}  # fmt: skip
    flags = set()
    for function in (Llama.__init__, *(getattr(Llama, name) for name in METHODS)):
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in KINDS and name not in other:
                flags.add(name)
                assert parameter.default in (True, False, None), name
    assert flags == {"vocab_only", "use_mmap", "use_mlock", "logits_all", "embedding", "offload_kqv", "flash_attn", "op_offload",
                     "swa_full", "no_perf", "numa", "spm_infill", "verbose", "echo", "stream", "reset", "penalize_nl"}  # fmt: skip


@pytest.mark.parametrize("name", named(Llama.__init__))
def test_the_constructor(path: Path, name: str) -> None:
    """Nothing is loaded before."""
    for odd in ODD:
        if not KINDS[name].fits(odd):
            with pytest.raises(ParameterTypeError, match=f"^{name}=.*: must be [^\n]*$"):
                Llama(**{"model_path": path, name: odd})
    assert name in OPTIONAL or not KINDS[name].fits(None)


@pytest.mark.parametrize("method", METHODS)
def test_methods(llm: Llama, method: str) -> None:
    for name in named(getattr(Llama, method)):
        refused = 0
        for odd in ODD:
            if not KINDS[name].fits(odd):
                refused += 1
                with pytest.raises(ParameterTypeError, match=f"^{name}=.*: must be [^\n]*$"):
                    getattr(llm, method)(**{**METHODS[method], name: odd})
        assert refused >= 4, name


@pytest.mark.parametrize("tokens", [5, "x", {"a": 1}, [None], [1.5], ["x"], [[1]], np.ones(3, np.float32)], ids=str)
def test_tokens(llm: Llama, tokens: Any) -> None:
    for call in (llm.eval, llm.detokenize, lambda t: next(llm.generate(t)), llm.create_completion):
        if not (isinstance(tokens, str) and call == llm.create_completion):
            with pytest.raises(ParameterTypeError, match="token"):
                call(tokens)


def test_texts_and_states(llm: Llama) -> None:
    for call in (llm.tokenize, llm.load_state):
        for odd in (5, None, [b"x"]):
            with pytest.raises(ParameterTypeError):
                call(odd)  # type: ignore[operator]
    for odd in (5, [5], b"x", "\ud800", {"x": "y"}):
        with pytest.raises(ParameterTypeError, match=r"^input="):
            checks.texts_of("input", odd)
    assert checks.texts_of("input", ["a", "\udcff"]) == ["a", "\udcff"] and checks.texts_of("input", "a") == ["a"]


def test_what_is_no_cache_and_no_grammar(llm: Llama) -> None:
    for cache in (5, object(), {1}):
        with pytest.raises(ParameterTypeError, match=r"^cache=.*: must be a LlamaCache"):
            llm.set_cache(cache)
    with pytest.raises(GrammarError, match=r"^grammar: None is no text$"):
        LlamaGrammar.from_string(None)


def test_values_in_place_of_the_files_are_of_its_kinds(path: Path) -> None:
    for odd in (None, [1], b"x"):
        with pytest.raises(ParameterTypeError, match=r"^kv_overrides=.*: must be a dict of texts, numbers"):
            Llama(path, kv_overrides={"general.name": odd}, verbose=False)
    given = {"llama.attention.layer_norm_rms_epsilon": np.float64(1e-3)}  # a float, as everywhere in Python
    with Llama(path, kv_overrides=given, vocab_only=True, verbose=False) as llm:
        assert float(llm.metadata["llama.attention.layer_norm_rms_epsilon"]) == 1e-3


def test_what_other_packages_number_with(llm: Llama) -> None:
    """NumPy's numbers and arrays, and bool for a whole number, as ctypes takes them."""
    check({"temperature": np.float32(1), "top_k": np.int64(3), "tensor_split": np.ones(2), "logprobs": True, "stop": ("a",),
           "logit_bias": {np.int32(3): 1, "4": np.float64(2)}, "seed": 1 << 40, "max_tokens": None, "top_p": float("inf")})  # fmt: skip
    assert llm(np.array([65, 66], np.int64), max_tokens=2)["usage"]["prompt_tokens"] == 2
