"""Llama's parameters for samplers and grammars: what chain they make, and what text comes of a grammar.

Owns the step from the API's names to the chain.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pyggml import Llama, LlamaGrammar
from pyggml.errors import GrammarError, SamplerError


def names(llm: Llama, **sampling: Any) -> str:
    given = {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temp": 0.8, "repeat_penalty": 1.1}
    return str(llm._new_chain(**given | {"frequency_penalty": 0.0, "presence_penalty": 0.0} | sampling))


# llama-cpp-python 0.3.36, llama.py, Llama._init_sampler
@pytest.mark.parametrize(
    ("sampling", "chain"),
    [
        ({}, "penalties -> top-k -> ?typical -> top-p -> min-p -> temp-ext -> dist"),
        ({"typical_p": 0.5}, "penalties -> top-k -> typical -> top-p -> min-p -> temp-ext -> dist"),
        ({"mirostat_mode": 1}, "penalties -> mirostat"),
        ({"mirostat_mode": 2}, "penalties -> mirostat-v2"),
        ({"mirostat_mode": 2, "temp": -1.0}, "penalties -> dist"),
        ({"mirostat_mode": 1, "temp": 0.0}, "penalties -> temp-ext -> dist"),
    ],
)
def test_the_chain_is_that_of_llama_cpp_python(llm: Llama, sampling: dict[str, Any], chain: str) -> None:
    assert names(llm, **sampling) == f"logits -> {chain}"


def test_mirostat_takes_its_numbers(llm: Llama) -> None:
    texts = [
        llm("hello", max_tokens=20, mirostat_mode=2, mirostat_tau=tau, mirostat_eta=eta, seed=4)["choices"][0]["text"]
        for tau, eta in ((5.0, 0.1), (0.1, 0.1), (5.0, 3.0), (5.0, 0.1))
    ]
    assert texts[0] == texts[3] and len(set(texts)) == 3
    with pytest.raises(SamplerError, match=r"^mirostat_mode 3"):
        llm("hello", max_tokens=1, mirostat_mode=3)


def test_a_grammar_rules_completion_stream_and_sample(llm: Llama, tmp_path: Path) -> None:
    text = 'root ::= "yes" | "no"'
    (tmp_path / "g.gbnf").write_text(text)
    for grammar in (text, LlamaGrammar.from_string(text), LlamaGrammar.from_file(tmp_path / "g.gbnf")):
        for temperature in (0.0, 2.0, -1.0):
            choice = llm("hello", grammar=grammar, temperature=temperature, seed=1)["choices"][0]
            assert choice["text"] in ("yes", "no") and choice["finish_reason"] == "stop"
    chunks = llm("hello", grammar=text, stream=True, max_tokens=9)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) in ("yes", "no")
    llm.reset()
    llm.eval(llm.tokenize(b"hello"))
    assert llm.detokenize([llm.sample(grammar='root ::= "q"')]) == b"q"


def test_a_schema_makes_json(llm: Llama) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}
    for given in (schema, json.dumps(schema)):
        grammar = LlamaGrammar.from_json_schema(given)
        value = json.loads(llm("hello", grammar=grammar, max_tokens=None, seed=2)["choices"][0]["text"])
        assert value and all(isinstance(item, bool) for item in value)


def test_mistakes_have_names(llm: Llama, tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match="line 1: a text without its closing quote"):
        LlamaGrammar.from_string('root ::= "')
    with pytest.raises(GrammarError, match=r"grammar file .*none\.gbnf: "):
        LlamaGrammar.from_file(tmp_path / "none.gbnf")
    with pytest.raises(GrammarError, match="'<nothing>' is not one token"):
        llm("hello", grammar=LlamaGrammar.from_string("root ::= <nothing>"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"repeat_penalty": 0}, "repeat_penalty 0: "),
        ({"temperature": float("inf")}, "temp inf: "),
        ({"logit_bias": {10**6: 1.0}}, "logit_bias: token 1000000 "),
        ({"mirostat_tau": float("inf")}, "mirostat_tau inf: "),
    ],
)
def test_what_is_out_of_range_is_named_as_it_was_given(llm: Llama, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        llm("hello", max_tokens=1, **given)


def test_seeds_count_by_their_32_lowest_bits(llm: Llama) -> None:
    """As ctypes hands them to the stock library."""
    texts = [
        llm("hello", max_tokens=8, temperature=2.0, seed=seed)["choices"][0]["text"]
        for seed in (7, (1 << 40) + 7, 7 - (1 << 32), 8)
    ]
    assert texts[0] == texts[1] == texts[2] != texts[3]
    llm.set_seed(7 + (1 << 32))
    llm.eval([104])
    far = llm.sample(temp=2.0)
    llm.set_seed(7)
    assert llm.sample(temp=2.0) == far


def test_tokens_that_a_stop_text_has_cut_off_keep_their_texts(path: Path) -> None:
    """What llama-cpp-python 0.3.36 says of such tokens."""
    with Llama(path, n_ctx=64, logits_all=True, verbose=False) as llm:
        options = {"max_tokens": 9, "temperature": 0, "logprobs": 1, "stop": ["cd"], "grammar": 'root ::= "abcdef"'}
        choice = llm("hello", **options)["choices"][0]
        chunks = [chunk["choices"][0] for chunk in llm("hello", stream=True, **options)]
    numbers = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert (numbers["tokens"], numbers["text_offset"]) == (["a", "b", "c", "d"], [5, 6, 7, 8])
    assert "".join(chunk["text"] for chunk in chunks) == "ab"
    assert [t for chunk in chunks if chunk["logprobs"] for t in chunk["logprobs"]["tokens"]] == numbers["tokens"]
