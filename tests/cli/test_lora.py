"""--lora and --lora-scaled: what they name, what they change, and that llama.cpp's programs say the same."""

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyggml_cli import cli, completion_flags, inspection, perplexity
from pyggml_cli.flags import UsageError, csv_row, parse
from tiny_lora import all_weights, write_lora

from pyggml.model.lora import Applied

TEXT = "".join(f"hello world {i}, hold the wheel; " for i in range(8))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    shapes = {"token_embd": (64, 267)}
    return [write_lora(folder / f"{i}.gguf", all_weights(), rank=i, shapes=shapes, seed=i) for i in (4, 8)]


@pytest.fixture
def run(call: Callable[..., Any], model: Path, reference: None) -> Callable[..., Any]:
    return lambda *args: call(cli.main, "-m", model, "-p", "hello wor", "-n", 24, "--temp", 0, "--no-perf", *args)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("", [""]),
        ("a,,b,", ["a", "", "b", ""]),
        ('"a,b",c', ["a,b", "c"]),
        ('"a ""b"", c",d', ['a "b", c', "d"]),
        ('a"b,c"d', ['a"b', 'c"d']),
        ('"a"b,c', ["ab", "c"]),
        ('"a,b', ["a,b"]),
    ],
)
def test_rows_of_commas(text: str, fields: list[str]) -> None:
    """As parse_csv_row in common/arg.cpp reads them."""
    assert csv_row(text) == fields


def test_what_is_named() -> None:
    argv = ["--lora", "a.gguf,b.gguf", "--lora-scaled", 'c:0.5,"d,e:-2"', "--lora", "f"]
    values = parse(completion_flags.ROWS, argv)
    assert values.lora == [[("a.gguf", 1.0), ("b.gguf", 1.0)], [("c", 0.5), ("d,e", -2.0)], [("f", 1.0)]]
    for flag, text, why in (
        ("--lora", "a,", "must be FNAME,..., none of them empty"),
        ("--lora-scaled", "a", "must be FNAME:SCALE, as in adapter.gguf:0.5"),
        ("--lora-scaled", "a:1:2", "must be FNAME:SCALE"),
        ("--lora-scaled", ":1", "must be FNAME:SCALE"),
        ("--lora-scaled", "a:b", "must be a number"),
        ("--lora-init-without-apply", "", "a flag of llama-server"),
    ):
        with pytest.raises(UsageError, match=re.escape(why)):
            parse(completion_flags.ROWS, [flag, text])


def test_texts(run: Callable[..., Any], adapters: list[Path]) -> None:
    plain, one, half, both = (
        run(*flags).out
        for flags in (
            (),
            ("--lora", adapters[0]),
            ("--lora-scaled", f"{adapters[0]}:0.5"),
            ("--lora", f"{adapters[0]},{adapters[1]}"),
        )
    )
    assert len({plain, one, half, both}) == 4 and all(text.startswith("hello wor") for text in (plain, one, half, both))
    assert run("--lora-scaled", f"{adapters[0]}:1,{adapters[1]}:1").out == both
    assert run("--lora", adapters[0], "--lora", adapters[1]).out == both
    assert run("--lora-scaled", f"{adapters[0]}:0").out == plain


def test_a_factor_beyond_single_precision_is_infinite_without_a_warning() -> None:
    adapter: Any = SimpleNamespace(alpha=6.0)
    pair: Any = SimpleNamespace(b=SimpleNamespace(ne=(4,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (Applied(adapter, 1e38).factor(pair), Applied(adapter, 2.0).factor(pair)) == (math.inf, 3.0)


def test_conversations_use_them(
    call: Callable[..., Any], model: Path, reference: None, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = ("-m", model, "-cnv", "-st", "-p", "hello", "-n", 12, "--temp", 0, "--no-perf")
    assert call(cli.main, *talk).out != call(cli.main, *talk, "--lora", adapters[0]).out


def test_a_prompt_cache_is_for_the_same_adapters(run: Callable[..., Any], adapters: list[Path], tmp_path: Path) -> None:
    cache, lora = ("--prompt-cache", tmp_path / "cache"), ("--lora", adapters[0])
    first = run(*cache, *lora)
    again = run(*cache, *lora)
    assert first.out == again.out and "holds 2 of 2 tokens of the prompt" in again.err
    assert run(*cache).err.endswith("was computed with 1 adapters, 0 are in use\n")
    assert "belongs to another model, or to other adapters or scales\n" in run(*cache, "--lora", adapters[1]).err


def test_mistakes_are_a_line(run: Callable[..., Any], call: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    other = write_lora(tmp_path / "other.gguf", ["blk.7.attn_q.weight"])
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(other.read_bytes()[:-100])
    for flags, why in (
        (("--lora", tmp_path / "none.gguf"), f"{tmp_path / 'none.gguf'}: No such file or directory"),
        (("--lora", model), f"{model}: not an adapter for this model: general.type is missing, must be 'adapter'"),
        (
            ("--lora", other),
            f"{other}: the model has no tensor 'blk.7.attn_q.weight': the adapter belongs to another one",
        ),
        (("--lora-scaled", f"{other}:0.5"), f"{other}: the model has no tensor 'blk.7.attn_q.weight'"),
        (("--lora", cut), f"{cut}: "),
        (("-m", other), f"{other}: general.type is 'adapter': not a model, but something to use beside one (--lora)"),
    ):
        for outcome in (run(*flags), call(perplexity.main, "-m", model, "-p", TEXT, "-c", 32, *flags)):
            assert (outcome.code, outcome.out) == (1, "")
            assert outcome.err.splitlines()[-1].startswith(f"error: {why}") and "Traceback" not in outcome.err


def test_the_peers_perplexity(
    call: Callable[..., Any], model: Path, reference: None, adapters: list[Path], newest: Any, tmp_path: Path
) -> None:
    """The newest llama-perplexity with the same flags, where neither engine rounds keys and values."""
    text = tmp_path / "text"
    text.write_text(TEXT)
    found = {}
    for flags in (
        (),
        ("--lora", adapters[1]),
        ("--lora-scaled", f"{adapters[0]}:0.75,{adapters[1]}:-1.5"),
        ("--lora", f"{adapters[0]},{adapters[1]}"),
        ("--lora", adapters[0], "--lora-scaled", f"{adapters[1]}:2"),
    ):
        shared = ("-m", model, "-f", text, "-c", 32, "-b", 32, "-ctk", "f32", "-ctv", "f32", "-fa", "off", *flags)
        ours = re.search(r"PPL = (\d+\.\d+)", call(perplexity.main, *shared).out)
        assert ours is not None
        assert float(ours[1]) == pytest.approx(newest.perplexity(*shared), rel=2e-6), flags
        found[flags] = float(ours[1])
    assert len({round(value) for value in found.values()}) == len(found), "adapters matter"


def test_what_is_in_a_file(call: Callable[..., Any], adapters: list[Path], tmp_path: Path, model: Path) -> None:
    shown = call(inspection.main, adapters[1]).out
    assert "  adapter       lora of 14 weights, rank 8, alpha 6.0\n" in shown and "file type" not in shown
    found = json.loads(call(inspection.main, "--json", adapters[1]).out)
    assert found["adapter"] == {"type": "lora", "alpha": 6.0, "ranks": [8], "weights": 14}
    bare = write_lora(tmp_path / "bare.gguf", [], alpha=None, strings={"adapter.type": None})
    assert (
        "  adapter       of an unknown type, of 0 weights, rank unknown, alpha none\n"
        in call(inspection.main, bare).out
    )
    assert json.loads(call(inspection.main, "--json", model).out)["adapter"] is None
