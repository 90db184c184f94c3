"""--prompt-cache: what is kept, what is taken from it, and that a bad file is one line."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import cli
from text_model import write_text_model

from pyggml.runtime import state


@pytest.fixture
def run(call: Callable[..., Any], model: Path, reference: None, tmp_path: Path) -> Callable[..., Any]:
    def complete(*args: object, cache: str = "cache", path: Path = model) -> Any:
        return call(cli.main, "-m", path, "--temp", 0, "--prompt-cache", tmp_path / cache, *args)

    return complete


def n_evaluated(outcome: Any) -> int:
    found = re.search(r"prompt eval time = .* / +(\d+) tokens", outcome.err)
    assert found, outcome.err
    return int(found.group(1))


def test_the_prompt_is_computed_once(run: Callable[..., Any], tmp_path: Path) -> None:
    prompt = ["-p", "abcdefgh", "-n", 6]
    first, second = run(*prompt), run(*prompt)
    assert first.code == second.code == 0 and first.out == second.out and len(first.out) > 8
    assert (n_evaluated(first), n_evaluated(second)) == (8, 1)
    assert f"{tmp_path / 'cache'}: holds 8 of 8 tokens of the prompt\n" in second.err
    assert state.load(tmp_path / "cache").tokens.tolist() == list(b"abcdefgh")


def test_what_two_prompts_have_in_common_is_taken(run: Callable[..., Any], tmp_path: Path) -> None:
    run("-p", "abcdefgh", "-n", 1)
    longer = run("-p", "abcdxyz", "-n", 5)
    assert n_evaluated(longer) == 3 and "holds 4 of 7 tokens" in longer.err
    assert longer.out == run("-p", "abcdxyz", "-n", 5, cache="other").out
    assert state.load(tmp_path / "cache").tokens.tolist() == list(b"abcdxyz")
    shorter = run("-p", "abcd", "-n", 5)
    assert shorter.out == run("-p", "abcd", "-n", 5, cache="third").out and n_evaluated(shorter) == 1
    assert len(state.load(tmp_path / "cache").tokens) == 7  # all of that prompt is there: nothing to write


def test_the_whole_text_is_kept_and_gone_on_with(run: Callable[..., Any], tmp_path: Path) -> None:
    whole = run("-p", "abcd", "-n", 9, cache="other")
    first = run("-p", "abcd", "-n", 5, "--prompt-cache-all")
    kept = state.load(tmp_path / "cache").tokens.tolist()
    assert len(kept) == 8  # what was chosen last has not been computed
    more = run("-n", 5)
    assert more.code == 0 and whole.out == more.out and whole.out.startswith(first.out)
    assert n_evaluated(more) == 1
    assert state.load(tmp_path / "cache").tokens.tolist() == kept


def test_read_only(run: Callable[..., Any], tmp_path: Path) -> None:
    run("-p", "abcd", "-n", 1, "--prompt-cache-ro", "--prompt-cache-all")
    assert not (tmp_path / "cache").exists()
    run("-p", "abcd", "-n", 1)
    before = (tmp_path / "cache").read_bytes()
    assert n_evaluated(run("-p", "abcdef", "-n", 3, "--prompt-cache-ro", "--prompt-cache-all")) == 2
    assert (tmp_path / "cache").read_bytes() == before and os.listdir(tmp_path) == ["cache"]


def test_without_a_prompt_and_without_a_file(run: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run("-n", 1)
    assert outcome.code == 2 and "no prompt: give one with -p or -f, " in outcome.err and outcome.out == ""
    (tmp_path / "empty").touch()
    assert run("-p", "ab", "-n", 1, cache="empty").code == 0  # as llama.cpp: like one that is not there
    assert len(state.load(tmp_path / "empty").tokens) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "damaged: "),
        (lambda data: data[:-40] + b"x" + data[-39:], "damaged: its digest does not match"),
        (lambda data: b"hello, world", "not a saved state"),
        (lambda data: b"nsgg" + data, "llama.cpp's session files are not read here"),
    ],
)
def test_a_bad_file_is_one_line_and_stays(
    run: Callable[..., Any], tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    run("-p", "abcd", "-n", 1)
    path = tmp_path / "cache"
    path.write_bytes(damaged := damage(path.read_bytes()))
    outcome = run("-p", "abcd", "-n", 1, "--prompt-cache-all")
    assert (outcome.code, outcome.out) == (1, "") and words in outcome.err
    assert [line for line in outcome.err.splitlines() if line] == [
        f"error: {path}: " + outcome.err.split(": ", 2)[2].strip()
    ]
    assert path.read_bytes() == damaged


def test_a_file_of_another_model_or_cache_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    run("-p", "abcd", "-n", 1)
    other = write_text_model(tmp_path / "other.gguf", seed=6)
    assert "belongs to another model" in run("-p", "abcd", "-n", 1, path=other).err
    assert "its K is F16, the context's is F32" in run("-p", "abcd", "-n", 1, "-ctk", "f32").err
    assert run("-p", "abcd", "-n", 1, "-fa", "off").code == 0  # only the order of V's numbers differs


def test_in_a_conversation(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m.content }};{% endfor %}"
    path = write_text_model(tmp_path / "chat.gguf", template=template)
    chat = ["-st", "-sys", "abcdefgh", "-n", 3, "-l", f"{ord('x')}+1000"]
    first = run(*chat, "-p", "q", path=path)
    assert first.out == "xxx\n" and n_evaluated(first) == 11
    second = run(*chat, "-p", "r", "--prompt-cache-all", path=path)
    assert second.out == "xxx\n" and n_evaluated(second) == 2 and "holds 9 of 11 tokens" in second.err
    assert state.load(tmp_path / "cache").tokens.tolist() == list(b"abcdefgh;r;xx")
