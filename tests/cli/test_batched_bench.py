"""pyggml-batched-bench: which tokens of which sequences are computed together, and llama-batched-bench's formats."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyggml_cli import batched_bench
from pyggml_cli.batched_bench import ROWS, Case, Measured, heading, line
from text_model import write_text_model

from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("batched") / "text.gguf", n_ctx=2048)


@pytest.fixture
def bench(call: Callable[..., Any], longer: Path, reference: None) -> Callable[..., Any]:
    return lambda *args: call(batched_bench.main, "-m", longer, *args)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[tuple[int, int, bool]]]]:
    """(sequence, position, whether logits are wanted) of all tokens of each batch."""
    seen: list[list[tuple[int, int, bool]]] = []
    decode = Context.decode

    def watching(self: Context, batch: Batch) -> Any:
        seen.append(list(zip(batch.seq.tolist(), batch.pos.tolist(), batch.outputs.tolist(), strict=True)))
        return decode(self, batch)

    monkeypatch.setattr(Context, "decode", watching)
    yield seen


def prompt(seq: int, n: int) -> list[tuple[int, int, bool]]:
    return [(seq, i, i == n - 1) for i in range(n)]


def test_what_is_computed(bench: Callable[..., Any], batches: list[list[tuple[int, int, bool]]]) -> None:
    args = ("-c", 512, "-npp", 3, "-ntg", 2, "-npl", 2)
    outcome = bench(*args)
    assert outcome.code == 0 and outcome.err == ""
    both = [*prompt(0, 3), *prompt(1, 3)]
    assert batches[0] == [(0, i, False) for i in range(16)]  # the warm-up
    assert batches[1:] == [both, [(0, 3, True), (1, 3, True)], [(0, 4, True), (1, 4, True)]]
    batches.clear()
    bench(*args, "-tgs")
    assert batches[1:] == [both, [(0, 3, True)], [(0, 4, True)], [(1, 3, True)], [(1, 4, True)]]
    for unified in ((), ("-kvu",)):
        batches.clear()
        assert bench(*args, "-pps", *unified).code == 0
        assert batches[1:] == [prompt(0, 3), [(0, 3, True), (1, 3, True)], [(0, 4, True), (1, 4, True)]]


def test_all_values_multiply_and_what_does_not_fit_is_left_out(bench: Callable[..., Any]) -> None:
    outcome = bench("-c", 512, "-npp", "4,250", "-npp", 8, "-ntg", 1, "-npl", "1,2", "--output-format", "jsonl")
    rows = [json.loads(text) for text in outcome.out.splitlines() if text]
    assert [(r["pp"], r["pl"], r["n_kv"]) for r in rows] == [
        *((4, 1, 5), (4, 2, 10), (250, 1, 251), (250, 2, 502)),
        *((8, 1, 9), (8, 2, 18)),
    ]
    outcome = bench("-c", 512, "-npp", 300, "-ntg", 1, "-npl", "1,2")
    assert outcome.err.splitlines() == [
        f"left out: -npl {n} of -npp 300 and -ntg 1: the context has 512 tokens, of which one sequence may have 256"
        for n in (1, 2)
    ]
    outcome = bench("-c", 512, "-kvu", "-npp", 300, "-ntg", 1, "-npl", "1,2", "--output-format", "jsonl")
    assert [json.loads(text)["pl"] for text in outcome.out.splitlines() if text] == [1]
    shared = bench("-c", 512, "-kvu", "-pps", "-npp", 300, "-ntg", 4, "-npl", 2, "--output-format", "jsonl")
    assert json.loads(shared.out.splitlines()[0])["n_kv"] == 308


def formats(source: str) -> list[str]:
    """The texts of LOG(...) in a C++ file, those that follow each other joined."""
    found = []
    for arguments in re.findall(r"\bLOG\(\s*((?:\"(?:[^\"\\]|\\.)*\"\s*)+)", source):
        parts = re.findall(r"\"((?:[^\"\\]|\\.)*)\"", arguments)
        found.append("".join(parts).encode().decode("unicode_escape").rstrip("\n"))
    return found


def test_lines_are_llama_batched_benchs(sources: dict[str, str]) -> None:
    known = formats(sources["batched-bench.cpp"])
    names, dashes = (text for text in known if text.startswith("|%6s"))
    titles = ["PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s"]
    marks = ["-" * width for _, width in batched_bench.COLUMNS]
    assert heading() == [names % tuple(titles), dashes % tuple(marks)]
    case, found = Case(128, 32, 4), Measured(0.5, 2.0, 512, 128)
    numbers = (128, 32, 4, 640, 0.5, 1024.0, 2.0, 64.0, 2.5, 256.0)
    (row,) = (text for text in known if text.startswith("|%6d"))
    assert line("md", {}, case, 640, found) == row % numbers
    (jsonl,) = (text for text in known if text.startswith('{"n_kv_max"'))
    shared = ["n_kv_max", "n_batch", "n_ubatch", "flash_attn", "is_pp_shared", "is_tg_separate", "n_gpu_layers"]
    settings = {name: i for i, name in enumerate([*shared, "n_threads", "n_threads_batch"])}
    fixed = [value for name, value in settings.items() if f'"{name}"' in jsonl]
    assert line("jsonl", settings, case, 640, found) == jsonl % (*fixed, *numbers)


def test_the_first_line_names_what_llama_batched_bench_names(
    bench: Callable[..., Any], sources: dict[str, str]
) -> None:
    out = bench("-c", 512, "-npp", 2, "-ntg", 1, "-npl", 1, "-t", 3, "-b", 64, "-fa", "off").out.splitlines()
    (known,) = (text for text in formats(sources["batched-bench.cpp"]) if "n_kv_max = " in text and "%s" in text)
    assert re.findall(r"(\w+) = ", out[1]) == re.findall(r"(\w+) = ", known)
    assert "n_kv_max = 512, n_batch = 64, n_ubatch = 512, flash_attn = 0," in out[1] and "n_threads = 3" in out[1]


def test_its_flags_are_known(arg_cpp: str) -> None:
    found = set()
    for text in arg_cpp.split("add_opt(common_arg(")[1:]:
        if "LLAMA_EXAMPLE_BENCH" in text:
            found |= set(re.findall(r"\"(--?[a-z-]+)\"", text.partition("}")[0]))
    known = {name for row in ROWS for name in (*row.names, *row.off)}
    assert found >= {"-npp", "-ntg", "-npl", "-pps", "-tgs"} and found <= known, found - known


def test_shared_prompts_are_the_same_as_computed_ones(longer: Path, reference: None) -> None:
    """What a copied prompt leads to is what it leads to where it was computed."""
    from pyggml.model.model import Model

    model = Model.load(longer)
    for unified in (False, True):
        context = Context(model, 512, n_seq_max=2, kv_unified=unified)
        ids = np.arange(7, dtype=np.int32)
        first = context.decode(Batch.of(ids, 0, 0))
        context.memory.copy(0, 1)
        rows = context.decode(Batch.join([Batch.of([9], 7, seq) for seq in (0, 1)]))
        np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
        assert not np.allclose(first[0], rows[0])
        context.close()
    model.close()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("-npp 8 -ntg 1", 2, "no test: give -npl, as in -npp 128 -ntg 32 -npl 1,8"),
        ("-npp 0 -ntg 1 -npl 1", 2, "-npp '0': must be at least 1"),
        ("-npp 8 -ntg 1 -npl 1000", 2, "-npl 1000: a context has at most 256 sequences"),
        ("-npp a -ntg 1 -npl 1", 2, "-npp 'a': must be a whole number"),
        ("-p hello", 2, "-p"),
    ],
)
def test_mistakes(bench: Callable[..., Any], line: str, code: int, words: str) -> None:
    outcome = bench(*line.split())
    assert outcome.code == code and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and words in outcome.err
