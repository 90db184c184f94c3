"""pyggml-cli: the flags of the samplers and grammars reach the chain, and mistakes are one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyggml_cli import cli
from pyggml_cli.completion_flags import ROWS
from pyggml_cli.flags import parse
from text_model import EOT, N_VOCAB, write_text_model

from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Tokenizer


@pytest.fixture
def complete(call: Callable[..., Any], model: Path, reference: None) -> Callable[..., Any]:
    """pyggml-cli on the small model, without prompt and timings in what it prints."""
    return lambda *args: call(cli.main, "-m", model, "-p", "hello", "--no-display-prompt", "--no-perf", *args)


def chain_of(model: Path, *args: str) -> Any:
    return cli._chain(parse(ROWS, args), Tokenizer.from_metadata(GGUFFile.open(model).metadata), 64)


def test_by_default_the_chain_is_that_of_llamacpp(model: Path) -> None:
    chain = "logits -> ?penalties -> ?dry -> ?top-n-sigma -> top-k -> ?typical -> top-p -> min-p -> ?xtc -> temp-ext"
    assert str(chain_of(model)) == f"{chain} -> dist"


def test_every_flag_reaches_its_parameter(model: Path) -> None:
    line = "--top-nsigma 2 --typical 0.9 --xtc-probability 0.4 --xtc-threshold 0.2 --dynatemp-range 0.5 "
    line += "--dynatemp-exp 2 --dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --dry-penalty-last-n 99 "
    line += "--adaptive-target 0.5 --adaptive-decay 0.7 --mirostat-ent 4 --mirostat-lr 0.3"
    chain = chain_of(model, *line.split())
    p = chain.params
    assert (p.top_n_sigma, p.typ_p, p.xtc_probability, p.xtc_threshold) == (2, 0.9, 0.4, 0.2)
    assert (p.dynatemp_range, p.dynatemp_exponent, p.dry_multiplier, p.dry_base) == (0.5, 2, 0.8, 2)
    assert (p.dry_allowed_length, p.dry_penalty_last_n, p.mirostat_tau, p.mirostat_eta) == (3, 99, 4, 0.3)
    assert (p.adaptive_target, p.adaptive_decay, p.dry_sequence_breakers) == (0.5, 0.7, ("\n", ":", '"', "*"))
    assert "?" not in str(chain).replace("?penalties", "")
    assert chain_of(model, "--dry-base", "0.5").params.dry_base == 1.75
    assert str(chain_of(model, "--mirostat", "1", "--temp", "1")) == "logits -> ?temp -> mirostat"
    assert str(chain_of(model, "--mirostat", "2")) == "logits -> temp -> mirostat-v2"
    assert str(chain_of(model, "--sampling-seq", "ka")) == "logits -> top-k -> adaptive-p"
    assert str(chain_of(model, "--samplers", "xtc;infill;Top-K")) == "logits -> ?xtc -> infill -> top-k -> dist"


@pytest.mark.parametrize(
    ("given", "breakers"),
    [
        ("none", ()),
        (r"\n\n", ("\n\n",)),
        ("a none b", ("b",)),
        ("a b", ("a", "b")),
    ],
)
def test_breakers(model: Path, given: str, breakers: tuple[str, ...]) -> None:
    flags = [part for text in given.split() for part in ("--dry-sequence-breaker", text)]
    assert chain_of(model, *flags).params.dry_sequence_breakers == breakers


def test_a_grammar_rules_the_text(complete: Callable[..., Any], tmp_path: Path) -> None:
    grammar = 'root ::= "\\n" ("yes" | "no") "!"'
    file = tmp_path / "g.gbnf"
    file.write_text(grammar)
    for flags in (("--grammar", grammar), ("--grammar-file", str(file))):
        outcome = complete(*flags, "-s", 3)
        assert outcome.code == 0 and outcome.out in ("\nyes!", "\nno!") and "[end of text]" in outcome.err
    assert complete("--grammar", grammar, "-l", f"{EOT}+1000").out in ("\nyes!", "\nno!")


def test_a_schema_rules_the_text(complete: Callable[..., Any], tmp_path: Path) -> None:
    schema = '{"type":"object","properties":{"n":{"type":"integer","minimum":7,"maximum":12}},"required":["n"]}'
    file = tmp_path / "s.json"
    file.write_text(schema)
    for flags in (("-j", schema), ("-jf", str(file))):
        assert 7 <= json.loads(complete(*flags, "-s", 5).out)["n"] <= 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grammar", "root ::= x"], "grammar: rule 'x' is used but not defined"),
        (["--grammar", ""], "--grammar: it is empty"),
        (["-j", "{"], "JSON schema: not JSON"),
        (["-j", '{"type":"float"}'], "JSON schema at #: unknown type 'float'"),
        (["-j", "{}", "--grammar", "x"], "give one of --grammar, --grammar-file, -j and -jf"),
        (["--grammar-file", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--mirostat", "3"], "--mirostat '3': must be from 0 to 2"),
        (["--xtc-probability", "nan"], "--xtc-probability nan: must be a finite number"),
        (["--dry-penalty-last-n", "-1"], "--dry-penalty-last-n '-1': must be at least 0"),
    ],
)
def test_mistakes_are_one_line(complete: Callable[..., Any], flags: list[str], message: str) -> None:
    outcome = complete(*flags)
    assert outcome.code in (1, 2) and message in outcome.err and outcome.err.count("\n") == 1


def test_tokens_that_the_model_suppresses_are_never_chosen(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "text.gguf")
    with GGUFFile.open(model) as file:
        keys = {**file.metadata, "tokenizer.ggml.suppress_tokens": np.array([5, 9], np.int32)}
        chain = cli._chain(parse(ROWS, ["--temp", "0", "-l", "5+100"]), Tokenizer.from_metadata(keys), 64)
    logits = np.zeros(N_VOCAB, np.float32)
    logits[[5, 7, 9]] = 3, 1, 2
    assert chain.sample(logits) == 7
