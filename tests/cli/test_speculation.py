"""--spec-type, -md and what belongs to them: the text stays, fewer steps are computed, and mistakes end in a line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import cli
from pyggml_cli.speculation import FirstOf
from text_model import write_text_model

from pyggml.runtime.context import Context

PROMPT = "hello world, hello world, hello wor"


@pytest.fixture
def run(call: Callable[..., Any], model: Path) -> Callable[..., Any]:
    return lambda *args: call(cli.main, "-m", model, "-p", PROMPT, "-n", 24, "--temp", 0, "--no-perf", *args)


@pytest.mark.parametrize(
    "sampling", [(), ("--temp", 0.9, "--seed", 7, "--repeat-penalty", 1.2)], ids=["greedy", "drawn"]
)
def test_the_text_stays(run: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch, sampling: Any) -> None:
    steps = []
    plain = Context.decode

    def counted(self: Any, tokens: Any, *args: Any, **options: Any) -> Any:
        if Path(self.model.file.paths[0]) == model:
            steps.append(len(tokens))
        return plain(self, tokens, *args, **options)

    monkeypatch.setattr(Context, "decode", counted)
    alone = run(*sampling)
    assert alone.code == 0 and len(alone.out) > len(PROMPT)
    for flags in (
        ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 1),
        ("--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-n", 2, "--spec-ngram-map-k-size-m", 4),
        ("-md", model, "--spec-draft-n-max", 4),
        ("-md", model, "--spec-draft-p-min", 0.5, "--spec-draft-n-min", 2),
        ("--spec-type", "ngram-simple,draft-simple", "-md", model),
        ("--spec-type", "none", "-md", model),
    ):
        steps.clear()
        assert run(*sampling, *flags).out == alone.out, flags
        if "ngram-simple" in flags or "--spec-draft-n-max" in flags:
            assert any(n > 1 for n in steps[1:]), "nothing was guessed"


def test_mistakes(run: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    other = write_text_model(tmp_path / "other.gguf", arch="qwen9")
    for flags, why in (
        (("--spec-type", "ngram-mod"), "'ngram-mod' is not one of none, draft-simple, ngram-simple, ngram-map-k"),
        (("--spec-type", "draft-simple"), "name the smaller model with -md"),
        (("-md", tmp_path / "none.gguf"), "No such file"),
        (("-md", other), "architecture 'qwen9' is unknown here"),
        (("--spec-draft-p-min", 2), "must be from 0 to 1"),
        (("--spec-draft-n-max", 0), "--spec-draft-n-max '0'"),
    ):
        result = run(*flags)
        assert result.code and why in result.err and "Traceback" not in result.err, (flags, result.err)


def test_the_first_that_has_a_guess_counts() -> None:
    class Guess:
        def __init__(self, tokens: list[int]) -> None:
            self.tokens, self.counts = tokens, list[tuple[int, int]]()

        def draft(self, tokens: Any, most: int) -> list[int]:
            return self.tokens[:most]

        def kept(self, drafted: int, kept: int) -> None:
            self.counts.append((drafted, kept))

    none, one, two = Guess([]), Guess([1]), Guess([2, 3])
    first = FirstOf([none, one, two])
    assert first.draft([], 5) == [1]
    first.kept(1, 0)
    assert one.counts == [(1, 0)] and not none.counts and not two.counts and FirstOf([none]).draft([], 5) == []
