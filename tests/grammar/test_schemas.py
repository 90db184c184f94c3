"""JSON schemas as grammars: what they describe, and what is refused, in one line that names the place.

Owns the properties that need no second implementation.
"""

import pytest
from grammars import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.errors import GrammarError
from pyggml.grammar import json_schema_to_grammar, parse

few = settings(deadline=None, max_examples=80)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply to be read"),
        ('{"const": NaN}', "NaN is not a JSON value"),
        ('{"type": "string", "minLength": 2001}', "at #: minLength is 2001, at most 2000 can be followed"),
        (
            '{"properties": {"a": {"items": {"type": "string", "minLength": 3000}}}}',
            "at #/properties/a/items: minLength is 3000, at most 2000 can be followed",
        ),
        ('{"items": {"type": "integer"}, "minItems": 2002}', "at #: minItems is 2002, at most 2001 can be followed"),
        ('{"type": "string", "minLength": 5, "maxLength": 3}', "at #: minLength is 5, maxLength only 3"),
        ('{"items": {}, "minItems": 2, "maxItems": 1}', "at #: minItems is 2, maxItems only 1"),
        ('{"type": "string", "pattern": "^a{3000}$"}', "3000 repetitions, more than 2000, in what became 'root'"),
        ('{"pattern": "^' + "a|" * 5000 + '$"}', "more than 5000 alternatives, in what became 'root'"),
        ('{"pattern": "^' + "a" * 50_000 + '$"}', "50002 characters, more than 50000"),
        (
            {"allOf": [{"properties": {f"{i}": {"const": 30_000 * "x"}}} for i in range(40)]},
            "more than 1000000 characters",
        ),
        ("3", "at #: a schema must be an object"),
        ('{"type": "float"}', "at #: unknown type 'float'"),
        ('{"type": []}', "at #: type must not be empty"),
        ('{"type": 3}', "at #: type must be a string"),
        ('{"enum": []}', "at #: enum must be an array"),
        ('{"anyOf": []}', "at #/anyOf: must be an array of at least one"),
        ('{"properties": {"a": {"type": "array", "minItems": -1}}}', "at #/properties/a: minItems must be"),
        ('{"type": "integer", "minimum": "3"}', "at #: minimum must be a number"),
        ('{"type": "integer", "minimum": 1e999}', "at #: minimum must be a number"),
        ('{"$ref": "#/definitions/x"}', "there is no 'definitions'"),
        ('{"$ref": "http:x"}', "only references into the same document"),
        ('{"type": "string", "pattern": "^(a$"}', "pattern '\\^\\(a\\$': unbalanced parentheses"),
        ('{"type": "object", "additionalProperties": 3}', "additionalProperties must be"),
    ],
)
def test_a_bad_schema_names_its_place(schema, message):
    with pytest.raises(GrammarError, match=message) as error:
        json_schema_to_grammar(schema)
    assert "\n" not in str(error.value)


def test_as_many_as_can_be_followed():
    for schema in (
        {"type": "string", "minLength": 2000, "maxLength": 9999},
        {"items": {"type": "null"}, "minItems": 2001},
        {"type": "string", "format": "date", "minLength": 3000},  # as long as a date, whatever else is said
    ):
        parse(json_schema_to_grammar(schema))


def test_a_huge_schema_ends():
    deep: dict = {"type": "string"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    wide: dict = {"type": "string"}
    for _ in range(40):
        wide = {"type": ["array", "array"], "items": wide}
    for schema, message in ((deep, "more than 100 schemas inside"), (wide, "more than 5000 schemas")):
        with pytest.raises(GrammarError, match=message):
            json_schema_to_grammar(schema)
    many = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1500)}}
    assert "p1499-kv" in json_schema_to_grammar(many)
    ring = {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}
    with pytest.raises(GrammarError, match="references in a row"):
        json_schema_to_grammar(ring)


@few
@given(st.integers(-1200, 1200), st.integers(0, 1500), st.integers(-2500, 2500))
def test_ranges_of_whole_numbers(low, width, value):
    high = low + width
    text = f"{value}"
    both = json_schema_to_grammar({"type": "integer", "minimum": low, "maximum": high})
    assert fits(both, text) == (low <= value <= high)
    assert fits(json_schema_to_grammar({"type": "integer", "minimum": low}), text) == (low <= value)
    assert fits(json_schema_to_grammar({"type": "integer", "maximum": high}), text) == (value <= high)


def test_keys_beside_additional_properties():
    schema = {
        "type": "object",
        "properties": {"a]": {}, "a-b^": {}, "\\": {}},
        "additionalProperties": {"type": "null"},
    }
    grammar = json_schema_to_grammar(schema)
    assert fits(grammar, '{"c":null}') and fits(grammar, '{"a]": 1,"c":null}') and fits(grammar, '{"ab":null}')
    assert not fits(grammar, '{"c": 3}') and fits(grammar, '{"a-b^": 3}')


def test_an_unsupported_pattern_is_any_string_and_the_log_says_so(caplog):
    grammar = json_schema_to_grammar({"type": "string", "pattern": "^\\w$"})
    assert fits(grammar, '"anything"') and "unsupported escape: \\w" in caplog.text


NUMBERS = (
    0,
    1,
    -1,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    -(2**63),
    10**30,
    10**400,
    -(10**400),
    10**5000,
    0.5,
    1e300,
    -1e300,
)
PLACES = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
}


@pytest.mark.parametrize(
    "number", NUMBERS, ids=lambda n: f"{n:.3g}" if abs(n) < 1e301 else f"10^{len(hex(n)) * 6 // 5}"
)
@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in PLACES.items() for key in keys])
def test_every_number_of_a_schema_at_its_ends(kind, key, number):
    """Works, or is refused in one line that names the place; also beside a small number at the other end."""
    for other in ({}, {PLACES[kind][0]: 3}, {PLACES[kind][1]: 3}):
        schema = {"type": "object", "properties": {"a": {"type": kind, "items": {}, **other, key: number}}}
        try:
            parse(json_schema_to_grammar(schema))
        except GrammarError as reason:
            assert "\n" not in str(reason)


@pytest.mark.parametrize("digits", [400, 4000, 5000])
def test_a_bound_of_many_digits_is_refused(digits):
    with pytest.raises(
        GrammarError, match=r"minimum must be a number from|a number of \d+ digits, of which 1000 are read"
    ) as error:
        json_schema_to_grammar('{"type": "integer", "minimum": 1' + "0" * digits + "}")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
