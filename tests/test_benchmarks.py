"""The programs in benchmarks/ run and tell what they promise, on the smallest of models. Not that we are fast."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from text_model import write_text_model

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(program: str, *args: object) -> str:
    command = [sys.executable, str(BENCHMARKS / program), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.usefixtures("peer")
def test_whole_engines(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "tiny.gguf")
    report = tmp_path / "report.json"
    out = run("vs_llamacpp.py", model, "-r", 2, "-p", 8, "-n", 3, "-d", "0,16", "--json", report)
    found: dict[str, Any] = json.loads(report.read_text())
    tests = {r["test"]: r for r in found["results"]}
    assert list(tests) == ["pp8", "tg3", "tg3 @ d16", "memory", "first token", "rpc"]
    for name, result in tests.items():
        assert result["model"] == "tiny.gguf" and name.split()[0] in out
    assert all(len(tests[name]["ratio"]) == 2 for name in ("pp8", "tg3", "tg3 @ d16", "first token"))
    assert set(tests["rpc"]["rates"]) == {"ours, local", "ours -> ours", "stock -> ours", "stock -> stock"}
    assert found["machine"]["read GB/s"] > 0 and found["machine"]["dot GMAC/s"] > 0
    again = {**found, "results": [{**tests["pp8"], "ratio": [2.0, 4.0]}]}
    (tmp_path / "again.json").write_text(json.dumps(again))
    rows = run("report.py", report, tmp_path / "again.json").splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("| tiny")]
    assert [row[1] for row in cells[:-1]] == [name for name in tests if name != "rpc"] and len(cells[-1]) == 9
    assert cells[0][4:6] == ["3.00", "2.00 .. 4.00"] and cells[1][6].endswith("%")


def test_rpc_beside_local(tmp_path: Path) -> None:
    """Of two checkouts, which are the same one here."""
    model, here = write_text_model(tmp_path / "tiny.gguf"), BENCHMARKS.parent
    out = run("rpc.py", model, here, here, "--seconds", 0)
    lines = re.findall(
        r"^(.*): (\d+) us a token locally, (\d+) over RPC: ([+-]\d+), ([\d.]+) of the rate \((\d+) bursts\)$", out, re.M
    )
    assert len(lines) == 2 and lines[0][0] == str(here)
    for _, local, rpc, more, _, bursts in lines:
        assert 0 < int(local) < int(rpc) and abs(int(rpc) - int(local) - int(more)) <= 1 and int(bursts) == 1


def test_shares_of_states() -> None:
    out = run("states.py", "tiny", "-r", 2, "-p", "1,20", "-t", 1)
    heads = re.findall(r"^tiny Q4_0, 4 layers, (\d+) tokens: [\d.]+ ms$", out, re.M)
    shares = re.findall(r"^  (\w+) +-?[\d.]+ ms +-?[\d.]+ %$", out, re.M)
    assert heads == ["1", "20"] and shares.count("GATED_DELTA_NET") == shares.count("SSM_CONV") == 2


@pytest.mark.usefixtures("peer")
def test_single_kernels() -> None:
    out = run("kernels.py", "Q4_0", "F16", "-r", 1, "-k", 64, "--mib", 4, "--no-attention")
    lines = [line for line in out.splitlines()[1:] if line]
    assert [line.split()[0] for line in lines] == ["Q4_0", "Q4_0", "F16", "F16"]
    rates = [re.search(r" ([\d.]+) +([\d.]+) (GB|GMAC)/s +([\d.]+)", line) for line in lines]
    assert all(rate is not None and float(rate[1]) > 0 for rate in rates), out


@pytest.mark.usefixtures("peer")
def test_many_sequences(tmp_path: Path) -> None:
    """Both programs run on the same flags; a ratio is of one round, "own" of ours with many and with one."""
    model, report = write_text_model(tmp_path / "tiny.gguf"), tmp_path / "report.json"
    out = run("many_sequences.py", model, "-r", 2, "-npp", 5, "-ntg", 3, "-npl", "1,3", "-t", 1, "--json", report)
    found: dict[str, Any] = json.loads(report.read_text())
    assert [r["test"] for r in found["results"]] == ["pp5 x 1", "pp5 x 3", "tg3 x 1", "tg3 x 3"]
    for alone, many in zip(found["results"][::2], found["results"][1::2], strict=True):
        for result in (alone, many):
            assert result["ratio"] == [a / b for a, b in zip(result["ours"], result["llama.cpp"], strict=True)]
            assert min(result["ratio"]) > 0 and result["test"] in out
        assert many["own"] == [a / b for a, b in zip(many["ours"], alone["ours"], strict=True)]
    assert run("report.py", report).count("| tiny |") == 4


def test_what_a_new_shape_costs(tmp_path: Path) -> None:
    out = run("miss.py", write_text_model(tmp_path / "tiny.gguf"), "-r", 2, "-t", 1)
    title, head, *rows = out.splitlines()
    assert re.fullmatch(r"tiny.gguf: \d+ layers, a token takes [\d.]+ ms", title) and head.split()[-1] == "token"
    assert len(rows) == 12 and all(float(row.split()[-1]) > 0 for row in rows)


def test_what_a_new_shape_costs_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")
    out = run("miss.py", write_text_model(tmp_path / "tiny.gguf"), "-r", 1, "--gpu")
    title, head, *rows = out.splitlines()
    assert re.fullmatch(r"tiny.gguf: \d+ layers", title) and head.split()[-1] == "sum"
    assert len(rows) == 12 and all(float(row.split()[-1]) > 0 for row in rows)


def test_what_a_new_shape_costs_a_server(tmp_path: Path) -> None:
    out = run("miss.py", write_text_model(tmp_path / "tiny.gguf"), "-r", 1, "-t", 1, "--rpc")
    title, head, *rows = out.splitlines()
    assert re.fullmatch(r"tiny.gguf: \d+ layers, a token takes [\d.]+ ms", title)
    assert head.split()[4:] == ["build", "place", "lower", "records", "server", "sum", "/", "token"]
    assert len(rows) == 12
    for row in rows:
        *_, build, place, lower, records, server, total, share = map(float, row.split())
        assert server > 0 and abs(total - (build + place + lower + records + server)) < 0.04 and share > 0


def test_help() -> None:
    for program in ("vs_llamacpp.py", "report.py", "kernels.py", "sampler.py", "miss.py"):
        assert "usage:" in run(program, "--help")


def refused(program: str, *args: object) -> str:
    command = [sys.executable, str(BENCHMARKS / program), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_slip_destroys_no_model(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "model.gguf")
    before = model.read_bytes()
    figures = tmp_path / "figures.json"
    figures.write_text('{"results": [], "machine": {}}')
    for program, *args in (
        ("vs_llamacpp.py", "--json", model),
        ("vs_llamacpp.py", "--png", model),
        ("report.py", figures, "--png", model),
        ("gpu.py", "--out", model),
    ):
        assert "model.gguf: already exists and is not a" in refused(program, *args)
    assert model.read_bytes() == before


def test_figures_that_are_none(tmp_path: Path) -> None:
    assert "none.json: No such file" in refused("report.py", tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    assert "no figures that vs_llamacpp.py --json wrote" in refused("report.py", tmp_path / "list.json")


def test_what_is_missing_is_said_before_anything_is_built(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['diskcache'] = None; import importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'diskcache' else f(name, *a)\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    for program in ("sampler.py", "kernels.py", "vs_llamacpp.py"):
        command = [sys.executable, str(BENCHMARKS / program)]
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYGGML_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
        assert done.returncode == 1 and "the stock llama_cpp imports diskcache: pip install '.[test]'" in done.stderr
        assert "Traceback" not in done.stderr and not list((tmp_path / "cache").rglob("*.gz"))


@pytest.mark.usefixtures("peer", "newest")
def test_servers(tmp_path: Path) -> None:
    model, report = write_text_model(tmp_path / "tiny.gguf", n_ctx=2304), tmp_path / "report.json"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [one.getsockname()[1], two.getsockname()[1]]
    args = (
        "-u",
        "1,2",
        "-p",
        8,
        "-n",
        3,
        "-q",
        2,
        "-r",
        2,
        "-w",
        0,
        "-t",
        1,
        "--vocab",
        200,
        "-g",
        64,
        "--ports",
        ",".join(map(str, ports)),
    )
    out = run("server.py", model, *args, "--json", report)
    found = json.loads(report.read_text())
    assert [r["test"] for r in found["results"]] == [
        "gap beside 64", "answers x 1", "first x 1", "answers x 2", "first x 2",
    ]  # fmt: skip
    for result in found["results"]:
        assert all(len(result[side]) == 2 and min(result[side]) > 0 for side in ("ours", "llama-server", "ratio"))
        assert result["test"] in out


def test_encoding(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "tiny.gguf")
    out = run("encoding.py", model, "-n", 50)
    assert re.fullmatch(r"tiny\.gguf \(\w+\): prose [\d.]+, one letter [\d.]+, .*Unicode [\d.]+\n", out)
