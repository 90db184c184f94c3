"""A slip must not destroy a model: where a command's result would take the place of a file of another kind, it is refused."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import cli, perplexity, quantize


@pytest.fixture
def victim(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(model, tmp_path / "precious.gguf"))


@pytest.fixture(autouse=True)
def quiet(reference: None) -> None:
    """Nothing needs a kernel here."""


def text_file(folder: Path, text: str = "hello world, " * 20) -> Path:
    path = folder / "notes.txt"
    path.write_text(text)
    return path


REFUSED = "it is not replaced"


def test_predictions(call: Callable[..., Any], model: Path, victim: Path, tmp_path: Path) -> None:
    text, before = text_file(tmp_path), victim.read_bytes()
    for path in (victim, text):
        kept = path.read_bytes()
        outcome = call(perplexity.main, "-m", model, "-f", text, "-c", 16, "--kl-divergence-base", path)
        assert outcome.code == 1 and outcome.err.endswith(
            f"{path}: already exists and is not a file of predictions; {REFUSED}\n"
        )
        assert path.read_bytes() == kept
    base = tmp_path / "base"
    for _ in range(2):  # one of its own kind is replaced
        assert call(perplexity.main, "-m", model, "-f", text, "-c", 16, "--kl-divergence-base", base).code == 0
    assert victim.read_bytes() == before


def test_saved_conversations(
    call: Callable[..., Any], model: Path, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, own = victim.read_bytes(), tmp_path / "talk.json"
    own.write_text('{"messages": []}')
    for path, code in ((victim, 1), (own, 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"/save {path}\n"))
        outcome = call(cli.main, "-m", model, "-cnv", "--no-perf")
        assert outcome.code == code
        assert (f"{path}: already exists and is not a saved conversation; {REFUSED}" in outcome.err) == bool(code)
    assert victim.read_bytes() == kept and own.read_text().startswith('{\n "messages"')


def test_prompt_caches(call: Callable[..., Any], model: Path, victim: Path) -> None:
    kept = victim.read_bytes()
    for more in ([], ["--prompt-cache-all"]):
        outcome = call(cli.main, "-m", model, "-p", "hello", "-n", 1, "--prompt-cache", victim, *more)
        assert outcome.code == 1 and f"{victim}: not a saved state" in outcome.err
    assert victim.read_bytes() == kept


def test_quantised_files(call: Callable[..., Any], model: Path, victim: Path, tmp_path: Path) -> None:
    text, kept = text_file(tmp_path), victim.read_bytes()
    outcome = call(quantize.main, model, text, "q8_0")
    assert outcome.code == 1 and outcome.err.endswith(f"{text}: already exists and is not a model file; {REFUSED}\n")
    assert text.read_text().startswith("hello")
    (tmp_path / "link.gguf").symlink_to(victim)
    (tmp_path / "hard.gguf").hardlink_to(victim)
    for name in ("precious.gguf", "link.gguf", "hard.gguf", "./precious.gguf"):
        outcome = call(quantize.main, victim, tmp_path / name, "q8_0")
        assert outcome.code == 1 and "is the input file, which is never overwritten" in outcome.err
    assert victim.read_bytes() == kept
