"""Names of rules of JSON schemas: those that looking through all of them would give, found in linear time."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.grammar.json_nodes import read_schema
from pyggml.grammar.json_schema import Converter
from pyggml.grammar.json_text import UnsupportedPattern, pattern_rule


class Looking(Converter):
    """The specification: names are tried one after the other, and all rules are kept before a pattern."""

    def _rule(self, plain: str, text: str) -> str:
        names = itertools.chain([plain], (f"{plain}{i}" for i in itertools.count()))
        return next(name for name in names if self.rules.get(name, text) == text)

    def _pattern(self, pattern: str, rule: str) -> str:
        before = dict(self.rules)
        try:
            return self.add_rule(rule, f'"\\"" ({pattern_rule(pattern, rule, self.add_rule)}) "\\""')
        except UnsupportedPattern:
            self.rules = before
            return self.add_rule(rule, self.builtin("string"))


class Counted(dict[str, str]):
    """How often a rule was looked at or added."""

    n = 0

    def get(self, *args: Any) -> Any:
        self.n += 1
        return super().get(*args)

    def __contains__(self, key: object) -> bool:
        self.n += 1
        return super().__contains__(key)

    def __setitem__(self, key: str, value: str) -> None:
        self.n += 1
        super().__setitem__(key, value)

    def __iter__(self) -> Any:
        self.n += len(self)
        return super().__iter__()

    def keys(self) -> Any:
        self.n += len(self)
        return super().keys()


SUPPORTED, UNSUPPORTED = "^(a|b){2}.(c){3}$", "^(a|b){2}.(c){3}(d){4}\\bx$"
STEPS = st.one_of(
    st.tuples(st.just("rule"), st.sampled_from(["a", "a0", "a1", "a-1", "dot", "é"]), st.sampled_from("xyz")),
    st.tuples(
        st.just("pattern"), st.sampled_from(["a", "a0", "dot"]), st.sampled_from([SUPPORTED, UNSUPPORTED, "^x$", "x"])
    ),
)


@given(st.lists(STEPS, max_size=30))
@settings(deadline=None, max_examples=300)
def test_names_are_those_that_looking_through_all_gives(steps: list[tuple[str, str, str]]) -> None:
    converters = Converter(), Looking()
    for kind, name, text in steps:
        found = {c.add_rule(name, text) if kind == "rule" else c._pattern(text, name) for c in converters}
        assert len(found) == 1
    assert converters[0].rules == converters[1].rules


SCHEMAS: dict[str, Any] = {
    "one name": lambda n: {chr(0x4E00 + i): {"const": i} for i in range(n)},
    "one name and text": lambda n: {chr(0x4E00 + i): {"const": 1} for i in range(n)},
    "patterns": lambda n: {f"p{i}": {"type": "string", "pattern": f"^(a{i}){{2}}$"} for i in range(n)},
    "patterns that are not supported": lambda n: {
        f"p{i}": {"type": "string", "pattern": f"^(a{i}){{2}}\\bx$"} for i in range(n)
    },
}


def looked(converter: Converter, properties: dict[str, Any]) -> int:
    rules = converter.rules = Counted(converter.rules)
    converter.visit(read_schema({"type": "object", "properties": properties}), "", 0)
    return rules.n


@pytest.mark.parametrize("kind", SCHEMAS)
def test_rules_are_looked_at_as_often_as_there_are_more(kind: str) -> None:
    few, many = (looked(Converter(), SCHEMAS[kind](n)) for n in (100, 800))
    assert many < 8.5 * few


def test_looking_through_all_is_caught() -> None:
    assert looked(Looking(), SCHEMAS["one name"](800)) > 20 * looked(Looking(), SCHEMAS["one name"](100))
    few, many = (looked(Looking(), SCHEMAS["patterns"](n)) for n in (100, 800))
    assert many > 20 * few
