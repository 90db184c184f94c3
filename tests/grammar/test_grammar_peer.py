"""Grammars against llama.cpp's own: the same ones are refused, the same tokens are allowed, and its test cases pass.

Owns the comparison.
"""

import ast
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from kept import file_digest

from pyggml.errors import GrammarError
from pyggml.gguf import GGUFFile
from pyggml.grammar import Matcher, json_schema_to_grammar, parse
from pyggml.grammar.rules import Ref
from pyggml.grammar.vocabulary import GrammarState
from pyggml.sampler import SamplerChain, SamplerParams
from pyggml.tokenizer import Tokenizer

SCRIPT = Path(__file__).parents[1] / "support" / "peer_grammar.py"
STEPS = 8

OWN = {
    "bytes of characters": 'root ::= [à-ï]{2} [^a-z]+ "€" . [一-龥]+ [\U0001f600-\U0001f64f]*',
    "tokens by number": 'root ::= ("a" | <[500]>)* !<[7]> [0-9]+',
    "tokens by name": 'root ::= <|im_start|> [a-z]+ "\\n"',
    "many ways": 'root ::= ("a" | "ab" | "b")* [a-c]{3,8} x?\nx ::= "x" x | "y"',
    "deep": 'root ::= "(" root ")" | "[" root "]" | [0-9]',
    "schema": json_schema_to_grammar(
        '{"type":"object","properties":{"name":{"type":"string","maxLength":4},"n":{"type":"integer","minimum":-3,'
        '"maximum":120},"tags":{"type":"array","items":{"enum":["a","b é"]}}},"required":["n"]}'
    ),
}


def random_grammar(rng: random.Random) -> str:
    """A small grammar, sometimes a wrong one."""
    names = ["root", "a", "b", "c"][: rng.randint(1, 4)]
    atoms = ['"x"', '"ab"', '"é"', "[a-c]", "[^a-y\\n]", ".", '"\\x41"', "[0-9_\\-]"]

    def item(depth: int, later: list[str]) -> str:
        kind = rng.random()
        if kind < 0.2 and depth < 2:
            inside = f"({alternatives(depth + 1, later)})"
        elif kind < 0.4 and later:
            inside = rng.choice([*names, "d"] if rng.random() < 0.1 else later)
        else:
            inside = rng.choice(['""', "[]"] if rng.random() < 0.02 else atoms)
            return inside + rng.choice(["", "", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{0}"])
        return inside + rng.choice(["", "", "?", "{2}"])  # stars of stars: the stock library would take hours

    def sequence(depth: int, later: list[str]) -> str:
        return " ".join(item(depth, later) for _ in range(rng.randint(0 if depth else 1, 2)))

    def alternatives(depth: int, later: list[str]) -> str:
        return " | ".join(sequence(depth, later) for _ in range(rng.randint(1, 3)))

    text = "\n".join(f"{name} ::= {alternatives(0, names[i:])}" for i, name in enumerate(names, 1))
    if rng.random() < 0.1:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(['"', "(", "]", "{", "\\", "::="]) + text[at + 1 :]
    return text


def endless(text: str) -> bool:
    """Whether llama.cpp may not come back from it: it misses left recursions behind rules that may be empty."""
    try:
        grammar = parse(text)
    except GrammarError:
        return False
    empty: set[int] = set()
    for _ in grammar.rules:
        for number, rule in enumerate(grammar.rules):
            if any(all(isinstance(e, Ref) and e.rule in empty for e in sequence) for sequence in rule):
                empty.add(number)
    begins: list[set[int]] = [set() for _ in grammar.rules]
    for number, rule in enumerate(grammar.rules):
        for sequence in rule:
            for e in sequence:
                if not isinstance(e, Ref):
                    break
                begins[number].add(e.rule)
                if e.rule not in empty:
                    break
    for _ in begins:
        begins = [found.union(*(begins[other] for other in found)) for found in begins]
    return any(number in found for number, found in enumerate(begins))


RANDOM = [text for text in (random_grammar(random.Random(seed)) for seed in range(250)) if not endless(text)]


class Stock:
    """What the stock library allowed, for each grammar by its name."""

    def __init__(self, peer, model: Path, folder: Path) -> None:
        files = sorted((peer.vendor / "grammars").glob("*.gbnf"))
        self.texts = {file.name: file.read_text(encoding="utf-8") for file in files} | OWN
        self.tokenizer = Tokenizer.from_metadata(GGUFFile.open(model).metadata)
        eog = self.tokenizer.eog_ids
        short = [t for t in range(self.tokenizer.n_vocab) if len(self.tokenizer.token_bytes(t)) < 4 and t not in eog]
        self.files = self._run(peer, model, folder, "files", self.texts, None)
        few = sorted(random.Random(1).sample(short, 500) + self.tokenizer.encode("é€", add_special=False))
        self.random = self._run(peer, model, folder, "random", dict(enumerate(RANDOM)), few)

    def _run(self, peer, model, folder, name, texts, ids):
        jobs = [{"grammar": text, "seed": 3, "steps": STEPS} for text in texts.values()]
        asked = json.dumps({"ids": ids, "jobs": jobs})

        def make():
            (folder / f"{name}.json").write_text(asked)
            peer.run(SCRIPT, str(model), str(folder / f"{name}.json"), str(folder / f"{name}.npz"), timeout=100)
            return (folder / f"{name}.npz").read_bytes()

        loaded = np.load(io.BytesIO(peer.kept(SCRIPT, [file_digest(model), asked], make)))
        return {key: loaded[key] for key in loaded.files}


@pytest.fixture(scope="module")
def stock(peer, smollm2, tmp_path_factory) -> Stock:
    return Stock(peer, smollm2, tmp_path_factory.mktemp("grammar"))


def check(state: GrammarState, out: dict[str, np.ndarray], i: int) -> int:
    """Our masks along the text that the other side chose are its masks; how many tokens they are about."""
    ids, seen = out["ids"], 0
    for k, bits in enumerate(out[f"masks_{i}"]):
        theirs = np.unpackbits(bits)[: len(ids)].astype(bool)
        np.testing.assert_array_equal(state.mask()[ids], theirs)
        picks = [*np.flatnonzero(theirs)[:50], *np.flatnonzero(~theirs)[:50]]
        assert [state.allows(int(ids[j])) for j in picks] == [bool(theirs[j]) for j in picks]
        seen += int(theirs.sum())
        if k < len(out[f"tokens_{i}"]):
            state.accept(int(out[f"tokens_{i}"][k]))
    return seen


def names(peer_vendor_grammars=("arithmetic", "c", "chess", "english", "japanese", "json", "json_arr", "list")):
    return [f"{name}.gbnf" for name in peer_vendor_grammars] + list(OWN)


@pytest.mark.parametrize("name", names())
def test_the_same_tokens_are_allowed(stock, name):
    i = list(stock.texts).index(name)
    assert stock.files[f"ok_{i}"]
    seen = check(GrammarState(stock.texts[name], stock.tokenizer), stock.files, i)
    assert seen > 5
    assert len(stock.texts) == len(names())


def test_random_grammars_are_taken_or_refused_alike_and_allow_the_same(stock):
    taken = refused = seen = given_up = 0
    for i, text in enumerate(RANDOM):
        try:
            state = GrammarState(text, stock.tokenizer)
        except GrammarError as reason:
            assert not stock.random[f"ok_{i}"], (text, str(reason))
            refused += 1
            continue
        assert stock.random[f"ok_{i}"], text
        taken += 1
        try:
            seen += check(state, stock.random, i)
        except GrammarError as reason:
            assert "too ambiguous to follow" in str(reason)
            given_up += 1
    assert taken > 150 and refused > 20 and seen > 5000 and given_up < 4


def test_a_mutant_is_caught(stock):
    """A grammar that differs in one character, and a mask that forgets characters cut in the middle."""
    i = list(stock.texts).index("bytes of characters")
    with pytest.raises(AssertionError):
        check(GrammarState(OWN["bytes of characters"].replace("à-ï", "á-ï"), stock.tokenizer), stock.files, i)

    class WholeCharactersOnly(GrammarState):
        def mask(self):
            allowed = super().mask().copy()
            for token in np.flatnonzero(allowed):
                try:
                    self.vocab.token_bytes(int(token)).decode()
                except UnicodeDecodeError:
                    allowed[token] = False
            return allowed

    with pytest.raises(AssertionError):
        check(WholeCharactersOnly(OWN["bytes of characters"], stock.tokenizer), stock.files, i)


# ---- the reference's own test cases, taken from its source

STRING = r'(?:R"""\((?:.*?)\)"""|"(?:[^"\\]|\\.)*")'


def c_string(text: str) -> str:
    if text.startswith("R"):
        return text[5:-4]
    return ast.literal_eval(re.sub(r"\\([0-7]{1,3})", lambda m: f"\\x{int(m[1], 8):02x}", text))


def c_strings(text: str) -> list[str]:
    text = re.sub(r"^\s*//[^\n]*", "", text, flags=re.MULTILINE)
    return ["".join(c_string(part) for part in re.findall(STRING, item, re.DOTALL))
            for item in re.findall(rf"{STRING}(?:\s*{STRING})*", text, re.DOTALL)]  # fmt: skip


def integration_cases(source: str) -> list[tuple[str, str, str, list[str], list[str]]]:
    gap = r"\s*(?:,\s*)?(?://[^\n]*\n\s*)*"
    block = r"\{(.*?)\n        \}"
    call = rf"test_(grammar|schema)\(\s*({STRING}){gap}({STRING}){gap}{block}{gap}{block}"
    found = re.findall(call, source, re.DOTALL)
    return [(kind, c_string(name), c_string(text), c_strings(yes), c_strings(no))
            for kind, name, text, yes, no in found if "token(" not in yes + no]  # fmt: skip


def fits(matcher: Matcher, text: str) -> bool:
    state = matcher.start
    for char in text:
        matcher.begin(state)
        following = matcher.advance(state, ord(char))
        if following is None:
            return False
        state = following
    return state.may_end


def test_the_integration_cases_of_the_reference(peer):
    cases = integration_cases((peer.vendor / "tests" / "test-grammar-integration.cpp").read_text(encoding="utf-8"))
    assert len(cases) > 40
    n_yes = n_no = 0
    for kind, name, text, yes, no in cases:
        matcher = Matcher(parse(json_schema_to_grammar(text) if kind == "schema" else text))
        for string in yes:
            assert fits(matcher, string), (name, string)
        for string in no:
            assert not fits(matcher, string), (name, string)
        n_yes, n_no = n_yes + len(yes), n_no + len(no)
    assert n_yes > 150 and n_no > 150


def schema_cases(source: str) -> list[tuple[str, str, str, str]]:
    case = r'test\(\{\s*(SUCCESS|FAILURE),\s*"((?:[^"\\]|\\.)*)",\s*R"""\((.*?)\)""",\s*(?:R"""\((.*?)\)"""|"")\s*\}\);'
    return re.findall(case, source, re.DOTALL)


def trimmed(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def test_schemas_become_the_same_text(peer):
    cases = schema_cases((peer.vendor / "tests" / "test-json-schema-to-grammar.cpp").read_text(encoding="utf-8"))
    assert len(cases) > 70
    for status, name, schema, expected in cases:
        if status == "FAILURE":
            with pytest.raises(GrammarError):
                json_schema_to_grammar(schema)
            continue
        made = json_schema_to_grammar(schema)
        assert trimmed(made) == trimmed(expected), name
        parse(made)


# ---- in the chain


def test_a_chain_draws_again_only_when_the_token_does_not_fit(stock):
    """llama.cpp's rule: the stages' random numbers advance once for a token that fits, twice for another."""
    tokenizer = stock.tokenizer
    logits = np.random.default_rng(0).standard_normal((6, tokenizer.n_vocab)).astype(np.float32) * 2
    params = SamplerParams(seed=5, top_k=0, top_p=1.0, min_p=0.0)
    for grammar, draws in (("root ::= [0-9]+", 2), ("root ::= .*", None)):
        chain = SamplerChain(SamplerParams(**{**_dict(params), "grammar": grammar}), tokenizer.n_vocab, vocab=tokenizer)
        plain = SamplerChain(params, tokenizer.n_vocab)
        state = GrammarState(grammar, tokenizer)
        for row in logits:
            token = chain.sample(row)
            wanted = plain.draw(row)
            if draws == 2 or not state.allows(wanted):
                assert not state.allows(wanted)
                wanted = plain.draw(np.where(state.mask(), row, np.float32(-np.inf)))
            assert token == wanted
            state.accept(token)
        copy = chain.clone()
        assert copy.sample(logits[0]) == chain.sample(logits[0])
        chain.reset()
        assert chain.grammar is not None and chain.grammar.allows(tokenizer.encode("7", add_special=False)[0])


def test_grammar_first_bans_before_the_draw(stock):
    tokenizer = stock.tokenizer
    logits = np.zeros(tokenizer.n_vocab, np.float32)
    params = SamplerParams(seed=5, top_k=0, top_p=1.0, min_p=0.0, grammar="root ::= [0-9]+")
    chain = SamplerChain(params, tokenizer.n_vocab, vocab=tokenizer, grammar_first=True)
    token = chain.sample(logits)
    assert tokenizer.token_bytes(token).isdigit()
    assert (
        chain.candidates is not None
        and np.isfinite(chain.candidates.logits).sum() == GrammarState("root ::= [0-9]+", tokenizer).mask().sum()
    )


def _dict(params: SamplerParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in params.__slots__}
