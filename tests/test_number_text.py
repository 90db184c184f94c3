"""Numbers that users write, wherever they may stand: neither `1_0` nor digits of other scripts, nor thousands of digits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from pyggml_cli import bench, cubins
from pyggml_cli.completion_flags import ROWS
from pyggml_cli.flags import UsageError, number, parse, proportions, whole
from pyggml_server.errors import RequestError
from pyggml_server.fields import read_json

from pyggml.errors import GrammarError, SamplerError
from pyggml.grammar import json_schema_to_grammar
from pyggml.model.overrides import parse_override
from pyggml.number_text import json_integer, real_number, whole_number
from pyggml.quantize import find_mix
from pyggml.sampler import parse_logit_bias

MANY = "9" * 5000  # Python reads 4300
WRONG = ("1_0", "\u0663", MANY, "", "a")


def test_what_is_read() -> None:
    assert [whole_number(text) for text in ("12", "-3", "+4", " 7 ", "007", "9" * 30)] == [
        12,
        -3,
        4,
        7,
        7,
        int("9" * 30),
    ]
    assert [real_number(text) for text in ("0.5", "-1e-3", ".5", "inf", " 2")] == [0.5, -0.001, 0.5, math.inf, 2]
    assert math.isnan(real_number("nan")) and json_integer("-12") == -12


@pytest.mark.parametrize(
    "read",
    [
        *(whole_number, real_number, whole(), number, proportions, bench.numbers, cubins.capability),
        *(lambda text: parse_override(f"k=int:{text}"), lambda text: parse_override(f"k=float:{text}")),
    ],
)
def test_what_is_refused(read: Callable[[str], Any]) -> None:
    for text in WRONG:
        with pytest.raises(ValueError) as caught:
            read(text)
        assert "int_max_str_digits" not in str(caught.value)


def test_where_numbers_are_parts_of_a_text() -> None:
    assert parse_logit_bias("15043-1.5e0") == (15043, -1.5)
    for text in ("1_0+1", "\u0663+1", f"{MANY}+1", "3+1_0", "3+\u0663"):
        with pytest.raises(SamplerError, match="must be a token id, a sign and a number"):
            parse_logit_bias(text)
    assert find_mix("7") is find_mix("q8_0") and find_mix("\u0667") is None and find_mix(MANY) is None
    with pytest.raises(UsageError, match=r"-n '1_0': must be a whole number"):
        parse(ROWS, ["-n", "1_0"])
    with pytest.raises(GrammarError, match=r"not JSON: a number of 5000 digits, of which 1000 are read at most$"):
        json_schema_to_grammar(f'{{"minimum": {MANY}}}')
    with pytest.raises(RequestError, match=r"not JSON: a number of 5000 digits, of which 1000 are read at most$"):
        read_json(f'{{"n": {MANY}}}'.encode())
