"""pyggml-bench: which tests are run, and llama-bench's formats."""

import contextlib
import csv
import io
import json
import re
import sqlite3
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import bench
from pyggml_cli.bench_output import COLUMNS, PRINTERS, Result
from pyggml_cli.flags import parse
from tiny_model import write_llama

from pyggml.gguf import GGUFFile
from pyggml.inspection import long_file_type

TABLE = [*bench.GENERAL, *bench.TESTS, *bench.OTHERS]


def names(line: str) -> list[str]:
    return [Result({**COLUMNS, **vars_of(case)}).test() for case in bench.cases(parse(TABLE, line.split()))]


def vars_of(case: bench.Case) -> dict[str, Any]:
    return {"n_prompt": case.n_prompt, "n_gen": case.n_gen, "n_depth": case.n_depth}


def test_default_tests() -> None:
    (pp, tg) = bench.cases(parse(TABLE, []))
    assert (pp.n_prompt, pp.n_gen, tg.n_prompt, tg.n_gen) == (512, 0, 0, 128)
    assert (pp.n_batch, pp.n_ubatch, pp.type_k, pp.n_gpu_layers, pp.n_depth) == (2048, 512, "f16", -1, 0)
    assert (parse(TABLE, []).reps, parse(TABLE, []).output) == (5, "md")


def test_lists_multiply() -> None:
    assert names("-p 8,16 -n 0 -pg 4,2 -d 0,32") == [
        "pp8", "pp16", "pp4+tg2", "pp8 @ d32", "pp16 @ d32", "pp4+tg2 @ d32",
    ]  # fmt: skip
    assert names("-p 0 -n 1-4*2 -n 9") == ["tg1", "tg2", "tg4", "tg9"]
    line = "-t 1,2 -fa on,off -ctk f16,f32 -ts 1/1,3/1 -dev RPC0/RPC1,none,auto"
    several = list(bench.cases(parse(TABLE, line.split())))
    assert len(several) == 3 * 2**5
    assert {case.tensor_split for case in several} == {(1.0, 1.0), (3.0, 1.0)}
    assert {case.devices for case in several} == {("RPC0", "RPC1"), ("none",), None}
    assert [case.n_threads for case in several[:4]] == [1, 1, 2, 2]


@pytest.fixture
def run(call: Callable[..., Any], model: Path, reference: None) -> Callable[..., Any]:
    return lambda *args: call(bench.main, "-m", model, "-p", 8, "-n", 4, "-r", 3, *args)


def test_markdown(run: Callable[..., Any]) -> None:
    outcome = run("-t", 2)
    head, line, *rows = outcome.out.splitlines()
    assert outcome.code == 0 and outcome.err == ""
    assert head == (
        "| model                          |       size |     params | backend    | threads |            test |"
        "                  t/s |"
    )
    assert line == (
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: | --------------: |"
        " -------------------: |"
    )
    assert len(rows) == 2 and {len(row) for row in rows} == {len(head)}
    assert re.fullmatch(
        r"\| llama 0M \(guessed\) all F32 +\| +0\.37 MiB \| +0\.10 M \| CPU +\| +2 \| +pp8 \| +[\d.]+ ± [\d.]+ \|",
        rows[0],
    )


def test_markdown_shows_what_was_varied(run: Callable[..., Any]) -> None:
    head, _, *rows = run("-fa", "0,1", "-ctk", "f32", "-b", 4, "-n", 0).out.splitlines()
    assert [cell.strip() for cell in head.split("|")][5:-3] == ["threads", "n_batch", "type_k", "fa"]
    assert [row.split("|")[8].strip() for row in rows[::2]] == ["0", "1"]


def test_json_formats(run: Callable[..., Any]) -> None:
    for rows in (json.loads(run("-o", "json").out), [json.loads(line) for line in run("-o", "jsonl").out.splitlines()]):
        assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(8, 0), (0, 4)]
        for row in rows:
            wanted = [*COLUMNS, "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"]
            assert list(row) == wanted
            n = row["n_prompt"] + row["n_gen"]
            assert len(row["samples_ns"]) == 3
            assert row["samples_ts"] == pytest.approx([1e9 * n / ns for ns in row["samples_ns"]], abs=1e-5)
            assert row["avg_ts"] == pytest.approx(statistics.fmean(row["samples_ts"]), abs=1e-5)
            assert row["stddev_ns"] == pytest.approx(statistics.stdev(row["samples_ns"]), abs=1)


def test_csv(run: Callable[..., Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(run("-o", "csv").out)))
    assert [row["n_gen"] for row in rows] == ["0", "4"]
    assert rows[0]["cpu_strict"] == "0" and rows[0]["model_type"] == "llama 0M (guessed) all F32"


def test_sql(run: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    """SQLite takes it, twice, and has the numbers as numbers."""
    rows = list(csv.DictReader(io.StringIO(run("-o", "csv").out)))
    with contextlib.closing(sqlite3.connect(":memory:")) as base:
        for _ in range(2):
            base.executescript(run("-o", "sql").out)
        cursor = base.execute("SELECT * FROM llama_bench")
        assert [column[0] for column in cursor.description] == list(rows[0])
        found = [dict(zip(rows[0], row, strict=True)) for row in cursor]
    assert [row["n_gen"] for row in found] == [0, 4, 0, 4]
    assert isinstance(found[0]["avg_ts"], float) and isinstance(found[0]["avg_ns"], int) and found[0]["repack"] == 1
    assert found[0]["model_filename"] == str(model)
    said: list[str] = []
    PRINTERS["sql"](said.append).add(Result({**COLUMNS, "model_filename": "it's"}, [1]))
    assert "'it''s'" in "".join(said)


@pytest.mark.parametrize(
    ("number", "words"), [(15, "Q4_K - Medium"), (0, "all F32"), (1025, "(guessed) F16"), (99, "unknown, may not work")]
)
def test_the_type_of_the_file_is_the_one_that_it_tells(
    number: int, words: str, call: Any, tmp_path: Path, reference: None
) -> None:
    path = write_llama(tmp_path / "m.gguf", ints={"general.file_type": number})
    outcome = call(bench.main, "-m", path, "-p", 2, "-n", 0, "-r", 1, "-o", "json")
    assert json.loads(outcome.out)[0]["model_type"] == f"llama 0M {words}"


def test_names_of_file_types_are_the_peers(sources: dict[str, str], tmp_path: Path, peer: Any) -> None:
    loader, header = sources["llama-model-loader.cpp"], (peer.vendor / "include" / "llama.h").read_text()
    numbers = dict(re.findall(r"(LLAMA_FTYPE_\w+)\s*=\s*(\d+)", re.sub(r"//.*LLAMA_FTYPE.*", "", header)))
    names = dict(re.findall(r'case (LLAMA_FTYPE_\w+):\s*name = LLAMA_FTYPE_PREFIX "([^"]+)"', loader))
    assert len(names) > 35
    for key, name in names.items():
        with GGUFFile.open(write_llama(tmp_path / "m.gguf", ints={"general.file_type": int(numbers[key])})) as file:
            assert long_file_type(file) == name, key


def test_columns_are_the_peers(peer: Any) -> None:
    import tarfile

    archive = peer.vendor.parents[1].with_name(f"{peer.vendor.parents[1].name}.tar.gz")
    with tarfile.open(archive, "r|gz") as stream:
        source = next(stream.extractfile(m).read() for m in stream if m.name.endswith("/llama-bench/llama-bench.cpp"))
    fields = re.search(r"get_fields\(\) \{.*?fields = \{(.*?)\};", source.decode(), re.DOTALL)
    assert fields is not None
    assert re.findall(r'"(\w+)"', fields.group(1)) == [*COLUMNS, "avg_ns", "stddev_ns", "avg_ts", "stddev_ts"]


def test_two_outputs_and_progress(call: Callable[..., Any], model: Path, reference: None) -> None:
    outcome = call(bench.main, "-m", model, "-p", 8, "-n", 0, "-oe", "jsonl", "--progress", "-r", 1, "-d", 8)
    assert outcome.out.startswith("| model")
    said = [line for line in outcome.err.splitlines() if not line.startswith("{")]
    assert said == [f"benchmark 1/1: {what}" for what in ("warm-up", "depth", "run 1/1")]
    assert json.loads(outcome.err.splitlines()[-1])["n_depth"] == 8


def test_work_done(model: Path, reference: None, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up, then as many runs as wanted, each from the same depth."""
    from pyggml.runtime.context import Context

    seen: list[tuple[int, int]] = []
    decode = Context.decode

    def counted(self: Context, tokens: list[int]) -> Any:
        seen.append((self.n_past, len(tokens)))
        return decode(self, tokens)

    monkeypatch.setattr(Context, "decode", counted)
    call(bench.main, "-m", model, "-p", 0, "-n", 0, "-pg", "6,2", "-d", 5, "-b", 4, "-r", 2)
    once = [(5, 4), (9, 2), (11, 1), (12, 1)]
    assert seen == [(0, 4), (4, 2), (6, 1), (0, 4), (4, 1), *once, *once]
    seen.clear()
    call(bench.main, "-m", model, "-p", 6, "-n", 0, "-r", 1, "--no-warmup")
    assert seen == [(0, 6)]


def test_no_tests_at_all(call: Callable[..., Any], model: Path, reference: None) -> None:
    assert call(bench.main, "-m", model, "-p", 0, "-n", 0, "-o", "json").out == "[]\n"


def test_every_format_has_a_name() -> None:
    assert list(PRINTERS) == ["md", "json", "jsonl", "csv", "sql"]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("-o xml", 2, "-o 'xml': must be one of md, json, jsonl, csv, sql"),
        ("-p 5-1*1x", 2, "must be numbers"),
        ("-pg 5", 2, "must be two numbers"),
        ("-sm row", 2, "-sm row: not implemented here"),
        ("--reps 3", 2, "unknown flag --reps; --help lists those that there are"),
        ("-dev RPC3", 1, "unknown device 'RPC3'"),
        ("-m /nonexistent.gguf", 1, "/nonexistent.gguf: No such file"),
    ],
)
def test_mistakes(run: Callable[..., Any], call: Callable[..., Any], line: str, code: int, words: str) -> None:
    outcome = call(bench.main, *line.split()) if "-m" in line.split() else run(*line.split())
    assert outcome.code == code and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and words in outcome.err
