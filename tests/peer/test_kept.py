"""Answers of slow programs are kept from run to run, and only those that are still the right ones."""

from pathlib import Path
from typing import Any

import pytest
from kept import Answers


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    return tmp_path


def nobody() -> Any:
    raise AssertionError("asked again")


def kept(depends: str = "build 1") -> Answers:
    return Answers("tokens", depends, "peer", "answers")


def test_a_question_is_asked_once() -> None:
    first = kept()
    assert first.get("a", lambda: [1, "é", None]) == first.get("a", nobody) == [1, "é", None]
    first.write()
    second = kept()
    assert second.get("a", nobody) == [1, "é", None] and second.get("b", lambda: {"n": 2}) == {"n": 2}
    second.write()
    assert kept().get("a", nobody) == [1, "é", None] and kept().get("b", nobody) == {"n": 2}


def test_another_program_is_asked_anew() -> None:
    first = kept()
    first.get("a", lambda: 1)
    first.write()
    assert kept("build 2").get("a", lambda: 2) == 2


def test_a_damaged_file_is_none(cache: Path) -> None:
    first = kept()
    first.get("a", lambda: 1)
    first.write()
    (file,) = (cache / "peer" / "answers").iterdir()
    for wrong in (file.read_bytes()[:-1], b"", file.read_bytes().replace(b"1", b"2")):
        file.write_bytes(wrong)
        assert kept().get("a", lambda: 3) == 3


def test_of_too_many_those_that_are_asked_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "MOST", 2)
    for question in "abc":
        answers = kept()
        answers.get(question, lambda question=question: question)
        answers.write()
    last = kept()
    assert last.get("c", nobody) == "c" and last.get("a", lambda: "anew") == "anew"
