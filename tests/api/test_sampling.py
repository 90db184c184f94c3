"""Llama's parameters for samplers and grammars: what chain they make, and what text comes of a grammar.

Owns the step from the API's names to the chain.
"""

import json
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
    with pytest.raises(SamplerError, match="--mirostat 3"):
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
