"""Deliberately wrong variants: a function with one place of its source replaced.

A mutant is (owner, name, old, new): in `owner`'s function `name`, `old`, which stands there once, becomes `new`. The test
that belongs to it has to fail.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

Mutant: TypeAlias = tuple[Any, str, str, str]
SLIPS = (NameError, TypeError, AttributeError, SyntaxError)


def mutate(monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    """Put the wrong function in place of the right one, until `monkeypatch` is undone."""
    owner, name, old, new = mutant
    right = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(right))
    assert source.count(old) == 1, f"{name}: {old!r} stands there {source.count(old)} times"
    made: dict[str, Any] = {}
    code = compile(source.replace(old, new), f"<mutant of {name}>", "exec")
    exec(code, vars(sys.modules[right.__module__]), made)
    monkeypatch.setattr(owner, name, made[name])


def assert_caught(monkeypatch: pytest.MonkeyPatch, mutant: Mutant, test: Callable[..., Any], **fixtures: Any) -> None:
    """`test` fails with the mutant in place. It is given those fixtures that it asks for."""
    mutate(monkeypatch, mutant)
    # nobody reads why it failed: where CI is set, pytest compares thousands of bytes for that, which takes minutes
    monkeypatch.setattr("_pytest.assertion.util._reprcompare", None)
    asked = set(inspect.signature(test).parameters)
    fixtures["monkeypatch"] = monkeypatch
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:
        test(**{name: value for name, value in fixtures.items() if name in asked})
    assert not isinstance(caught.value, SLIPS), f"the mutant is not what it should be: {caught.value!r}"
