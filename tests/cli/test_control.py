"""--control-vector, --control-vector-scaled and --control-vector-layer-range: what they name, what they change, and what is no
control vector."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from pyggml_cli import cli, completion_flags, perplexity
from pyggml_cli.flags import UsageError, parse
from text_model import N_EMBD, write_text_model

TEXT = "".join(f"hello world {i}, hold the wheel; " for i in range(8))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of layer 1, the only one of the model's two that may have one."""
    folder, made = tmp_path_factory.mktemp("vectors"), []
    for seed in (1, 2):
        writer = gguf.GGUFWriter(folder / f"{seed}.gguf", "controlvector")
        vector = np.random.default_rng(seed).normal(0, 2, N_EMBD).astype(np.float32)
        writer.add_tensor("direction.1", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.append(folder / f"{seed}.gguf")
    return made


@pytest.fixture
def run(call: Callable[..., Any], model: Path, reference: None) -> Callable[..., Any]:
    return lambda *args: call(cli.main, "-m", model, "-p", "hello wor", "-n", 16, "--temp", 0, "--no-perf", *args)


def test_what_is_named() -> None:
    argv = ["--control-vector", "a,b", "--control-vector-scaled", "c:0.5", "--control-vector-layer-range", "2", "-1"]
    values = parse(completion_flags.ROWS, argv)
    assert values.control == [[("a", 1.0), ("b", 1.0)], [("c", 0.5)]] and values.control_layers == (2, -1)
    assert parse(completion_flags.ROWS, []).control_layers is None
    for args, why in (
        (["--control-vector", "a,"], "must be FNAME,..., none of them empty"),
        (["--control-vector-scaled", "a"], "must be FNAME:SCALE"),
        (["--control-vector-scaled", "a:inf"], "the scale must be from -3.40282e+38 to 3.40282e+38"),
        (["--lora-scaled", "a:nan"], "the scale must be from -3.40282e+38 to 3.40282e+38"),
        (["--yarn-orig-ctx", "1" + "0" * 400], "must be from 0 to 2147483647"),
        (["--control-vector-layer-range", "1"], "--control-vector-layer-range needs an argument"),
        (["--control-vector-layer-range", "1", "x"], "--control-vector-layer-range 'x': must be a whole number"),
    ):
        with pytest.raises(UsageError, match=re.escape(why)):
            parse(completion_flags.ROWS, args)


def test_what_they_change(run: Callable[..., Any], vectors: list[Path]) -> None:
    one, two = vectors
    plain, first = run(), run("--control-vector", one)
    assert plain.code == first.code == 0 and plain.out != first.out
    assert run("--control-vector-scaled", f"{one}:0.5,{one}:0.5").out == first.out
    assert run("--control-vector", one, "--control-vector-layer-range", 1, 1).out == first.out
    assert run("--control-vector", one, "--control-vector-layer-range", 2, 9).out == plain.out
    assert run("--control-vector-scaled", f"{one}:0").out == plain.out
    both = run("--control-vector", f"{one},{two}")
    assert both.out == run("--control-vector", two, "--control-vector", one).out not in (plain.out, first.out)


def test_a_range_that_ends_before_it_begins(run: Callable[..., Any], vectors: list[Path]) -> None:
    outcome = run("--control-vector", vectors[0], "--control-vector-layer-range", 9, 3)
    said = "error: --control-vector-layer-range 9 3: the last layer lies before the first\n"
    assert (outcome.code, outcome.out, outcome.err) == (2, "", said)


def test_a_prompt_cache_knows_them(run: Callable[..., Any], vectors: list[Path], tmp_path: Path) -> None:
    cache = ["--prompt-cache", tmp_path / "cache"]
    assert run("--control-vector", vectors[0], *cache).code == 0
    assert run("--control-vector", vectors[0], *cache).code == 0
    assert "was computed with 1 adapters, 0 are in use" in run(*cache).err
    assert "belongs to another model, or to other adapters or scales" in run("--control-vector", vectors[1], *cache).err


def test_of_another_command(
    call: Callable[..., Any], model: Path, reference: None, vectors: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(TEXT)
    args = ["-m", model, "-f", tmp_path / "text", "-c", 32]
    plain, steered = call(perplexity.main, *args), call(perplexity.main, *args, "--control-vector", vectors[0])
    assert plain.code == steered.code == 0 and plain.out != steered.out


def test_what_is_none_is_one_line(run: Callable[..., Any], model: Path, vectors: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path / "text", "not a GGUF file"),
        (model, "is no part of"),
    ):
        outcome = run("--control-vector", path)
        assert (outcome.code, outcome.out) == (1, "") and words in outcome.err
        assert re.fullmatch(r"error: [^\n]*\n", outcome.err), outcome.err
    other = write_text_model(tmp_path / "adapter.gguf", arch="controlvector")
    assert "architecture 'controlvector' is unknown" in run("-m", other).err
