"""pyggml-quantize: arguments, what is printed, exit codes. The files it makes are tested in tests/quantize/test_quantize.py."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import quantize
from tiny_model import write_llama

from pyggml.dtypes import SIZES, GGMLType
from pyggml.gguf import GGUFFile


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("quantize") / "tiny.gguf", n_embd=256, n_ff=256, n_layer=1)


@pytest.fixture
def run(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: call(quantize.main, *args)


def types(path: Path) -> dict[str, str]:
    with GGUFFile.open(path) as file:
        return {name: tensor.type.name for name, tensor in file.tensors.items()}


def test_a_mix(run: Callable[..., Any], source: Path, tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"
    outcome = run(source, target, "q4_k_m", 2)
    assert outcome.code == 0
    assert outcome.err.startswith("warning: rows of 64 do not divide into Q4_K blocks: 1 tensor becomes Q5_0\n")
    assert re.fullmatch(
        r"model size = +1\.\d\d MiB \(32\.00 BPW\)\nquant size = +0\.\d\d MiB \([56]\.\d\d BPW\)\n"
        rf"{target}: written in \d+\.\d s\n",
        outcome.out,
    )
    made = types(target)
    assert made["blk.0.ffn_up.weight"] == "Q4_K" and made["token_embd.weight"] == "Q6_K"
    assert made["blk.0.attn_output.weight"] == "Q5_0" and made["output_norm.weight"] == "F32"


def test_the_name_of_the_result(run: Callable[..., Any], source: Path, tmp_path: Path) -> None:
    here = tmp_path / source.name
    here.write_bytes(source.read_bytes())
    assert run(here, "7").code == 0
    assert types(tmp_path / "ggml-model-Q8_0.gguf")["blk.0.ffn_up.weight"] == "Q8_0"
    assert run(here, "copy", 1).code == 0
    assert types(tmp_path / "ggml-model-COPY.gguf") == types(source)


def test_flags_reach_the_plan(run: Callable[..., Any], source: Path, tmp_path: Path) -> None:
    """Flags may stand before and after the names."""
    pairs = tmp_path / "types.txt"
    pairs.write_text("ATTN_V=q5_0\nffn_gate=f16 ")
    target = tmp_path / "made.gguf"
    flags = ("--tensor-type", "ffn_up=q8_0", "--tensor-type-file", pairs, "--token_embedding_type", "q4_1")
    more = ("--override-kv", "general.name=str:a=b:c", "--override-kv", "x.n=int:-3", "--override-kv", "x.b=bool:true")
    outcome = run(*flags, source, target, "Q6_K", 1, *more, "--override-kv", "x.f=float:0.5", "--max-buffer-size", 9)
    assert outcome.code == 0 and "--max-buffer-size makes no difference here" in outcome.err
    made = types(target)
    assert [made[f"blk.0.{name}.weight"] for name in ("ffn_up", "attn_v", "ffn_gate", "ffn_down")] == [
        "Q8_0", "Q5_0", "F16", "Q6_K",
    ]  # fmt: skip
    assert made["token_embd.weight"] == "Q4_1"
    with GGUFFile.open(target) as file:
        assert file.metadata["general.name"] == "a=b:c" and file.get_u32("x.n") == 3
        assert file.get_bool("x.b") is True and file.get_f32("x.f") == 0.5


def test_dry_run(run: Callable[..., Any], source: Path, tmp_path: Path) -> None:
    """What it says of types and sizes is what is written; it may also say it of what could not be written."""
    before = sorted(source.parent.iterdir())
    said = run("--dry-run", source, "Q3_K_M")
    assert said.code == 0 and sorted(source.parent.iterdir()) == before
    rows = [line.split() for line in said.out.splitlines() if " -> " in line]
    target = tmp_path / "made.gguf"
    assert run(source, target, "Q3_K_M").out.splitlines()[:2] == said.out.splitlines()[-2:]
    assert {row[0]: row[row.index("->") + 1] for row in rows} == types(target)
    assert run("--dry-run", target, "Q2_K_S").code == 0


def test_help_names_every_mix(run: Callable[..., Any]) -> None:
    from pyggml.quantize import MIXES

    text = " ".join(run("--help").out.split())
    assert text.startswith("usage: pyggml-quantize [flags] IN.gguf [OUT.gguf] MIX [THREADS]")
    assert all(f"{mix.name} ({mix.number})" in text for mix in MIXES.values())


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("", 2, "usage: pyggml-quantize [flags] IN.gguf [OUT.gguf] MIX [THREADS]"),
        ("IN", 2, "usage: "),
        ("IN OUT", 2, "OUT: unknown quantisation mix; known are Q4_0, "),
        ("IN OUT Q4_X", 2, "Q4_X: unknown quantisation mix"),
        ("IN OUT IQ2_XS", 1, "mix IQ2_XS is not supported (supported: Q4_0, Q4_1,"),
        ("IN OUT Q8_0 two", 2, "threads 'two': must be a whole number"),
        ("IN OUT Q8_0 2 3", 2, "unexpected argument '3'"),
        ("--imatrix im.dat IN OUT Q4_K_M", 2, "--imatrix im.dat: not implemented here"),
        ("--prune-layers 1 IN OUT Q4_K_M", 2, "--prune-layers 1: not implemented here"),
        ("--tensor-type x IN OUT Q4_K_M", 2, "--tensor-type 'x': must be NAME=TYPE"),
        (
            "--tensor-type-file IN IN OUT Q4_K_M",
            2,
            r"tiny.gguf: 'GGUF\x03\x00",
        ),
        ("--tensor-type (=q8_0 IN OUT Q4_K_M", 2, "not a regular expression: "),
        ("--tensor-type a=q9 IN OUT Q4_K_M", 2, "--tensor-type 'a=q9': quantising to q9 is not supported (supported: "),
        (
            "--output-tensor-type x IN OUT Q4_K_M",
            2,
            "--output-tensor-type: quantising to x is not supported (supported: ",
        ),
        ("--token-embedding-type x IN OUT Q8_0", 2, "--token-embedding-type: quantising to x is not supported"),
        ("--tensor-type-file /nonexistent IN OUT Q4_K_M", 1, "/nonexistent: No such file"),
        ("--override-kv a=int:x IN OUT Q4_K_M", 2, "--override-kv 'a=int:x': must be a whole number"),
        ("--override-kv a=u8:1 IN OUT Q4_K_M", 2, "must be KEY=int:N"),
        ("--purer IN OUT Q4_K_M", 2, "unknown flag --purer; the nearest known one is --pure"),
        ("/nonexistent.gguf OUT Q8_0", 1, "/nonexistent.gguf: No such file"),
        ("IN /nonexistent/x.gguf Q8_0", 1, "No such file or directory"),
        ("IN IN Q8_0", 1, "is the input file, which is never overwritten"),
        ("--token-embedding-type q8_0 IN OUT Q2_K_S", 1, "needs an importance matrix"),
    ],
)
def test_mistakes(run: Callable[..., Any], source: Path, line: str, code: int, words: str, tmp_path: Path) -> None:
    outcome = run(*line.replace("IN", str(source)).replace("OUT", str(tmp_path / "OUT")).split())
    assert outcome.code == code and outcome.out == "", outcome
    assert (
        outcome.err.startswith("error: ")
        and outcome.err.count("\n") == 1
        and words in outcome.err.replace(str(tmp_path) + "/", "")
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_no_file(spawn: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    source = write_llama(tmp_path / "in.gguf", n_embd=1024, n_ff=2048, n_layer=6)
    process = spawn("quantize", source, tmp_path / "out.gguf", "Q2_K", 1)
    deadline = time.monotonic() + 60
    while not any(path.name.startswith(".out") and path.stat().st_size for path in tmp_path.iterdir()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("interrupted\n") and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_it_starts_without_numba() -> None:
    code = "import sys; from pyggml_cli.quantize import main; main(['--help']); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_types_that_are_offered_exist() -> None:
    from pyggml.quantize import MIXES
    from pyggml.quants import QUANTS

    single = {
        t for t, quant in QUANTS.items() if quant.can_quantize and SIZES[t].block_size in (64, 128)
    }  # of single tensors
    single |= {GGMLType.MXFP4, GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.Q8_1, GGMLType.Q8_K}
    assert {mix.type for mix in MIXES.values()} == {t for t, quant in QUANTS.items() if quant.can_quantize} - single
