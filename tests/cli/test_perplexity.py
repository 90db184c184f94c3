"""pyggml-perplexity: flags, what is printed, exit codes. The numbers are tested in tests/perplexity/test_perplexity.py."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import perplexity, progress
from text_model import write_text_model

TEXT = "".join(f"hello world {i}, hold the wheel; " for i in range(16))


@pytest.fixture
def run(call: Callable[..., Any], model: Path, reference: None) -> Callable[..., Any]:
    return lambda *args: call(perplexity.main, "-m", model, *args)


def test_what_is_printed(run: Callable[..., Any]) -> None:
    outcome = run("-p", TEXT, "-c", 32, "--chunks", 3)
    assert outcome.code == 0
    assert re.fullmatch(
        r"\[1\](\d+\.\d{4}),\[2\]\d+\.\d{4},\[3\](\d+\.\d{4}),\nFinal estimate: PPL = \2 \+/- \d+\.\d{5}\n", outcome.out
    )
    assert "calculating perplexity over 3 chunks, n_ctx=32, batch_size=96, n_seq=3\n" in outcome.err
    assert re.search(r"total time = \d+\.\d\d s for 96 tokens \(\d+\.\d\d tokens per second\)\n", outcome.err)
    lines = run("-p", TEXT, "-c", 32, "--chunks", 3, "--ppl-output-type", 1, "--no-perf")
    rows = [line.split() for line in lines.out.splitlines()[:-2]]
    assert [row[0] for row in rows] == ["0", "32", "64"] and rows[-1][1] in outcome.out
    assert float(rows[-1][2]) > float(rows[-1][3]) > 0 and "total time" not in lines.err


NUMBER = r"\d+\.\d+"


def numbers(out: str) -> list[float]:
    return [float(x) for x in re.findall(NUMBER, out)]


@pytest.mark.parametrize("flags", [(), ("-fa", "off"), ("-ub", 24), ("-ctk", "f32", "-ub", 7)])
def test_chunks_computed_together_say_what_each_says_alone(run: Callable[..., Any], tmp_path: Path, flags: Any) -> None:
    """In sequences of their own, however many there is room for in a batch; the last ones are fewer."""
    flags = ("-p", TEXT, "-c", 32, "--no-perf", *flags)
    base = tmp_path / "base.bin"
    alone = run(*flags, "-b", 32, "--save-all-logits", base)
    assert "batch_size=32, n_seq=1\n" in alone.err
    n_chunks = alone.out.count("[")
    assert n_chunks > 4 and n_chunks % 4
    for n_batch, n_seq in ((31, 1), (64, 2), (130, 4), (2048, n_chunks)):
        some = run(*flags, "-b", n_batch)
        assert some.code == 0 and f"batch_size={min(n_batch, 32 * n_seq)}, n_seq={n_seq}\n" in some.err
        assert re.sub(NUMBER, "", some.out) == re.sub(NUMBER, "", alone.out)
        assert numbers(some.out) == pytest.approx(numbers(alone.out), rel=1e-4)
    against = ("--no-perf", *flags[5:], "--kl-divergence", "--kl-divergence-base", base)
    alone, some = run(*against, "-b", 32), run(*against, "-b", 130)
    assert some.code == 0 and f"computing over {n_chunks} chunks, n_ctx=32, batch_size=128, n_seq=4\n" in some.err
    assert [line[:4] for line in some.out.splitlines()] == [line[:4] for line in alone.out.splitlines()]
    perplexities = [[float(x) for x in re.findall(r"^ *\d+ +(\d+\.\d+) ±", o.out, re.M)] for o in (some, alone)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-4) and len(perplexities[0]) == n_chunks


def test_texts(run: Callable[..., Any], tmp_path: Path) -> None:
    """A file less its last newline, a file as it is, and the text itself."""
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode() + b"\n")
    results = [
        run(flag, what, "-c", 32).out for flag, what in (("-p", TEXT), ("-f", path), ("-bf", path), ("-p", TEXT + "\n"))
    ]
    assert results[0] == results[1] and results[2] == results[3]
    assert run("-e", "-p", TEXT.replace(" ", r"\x20"), "-c", 32).out == results[0]
    assert run("-p", TEXT.replace(" ", r"\x20"), "-c", 32).out != results[0]


def test_divergence_from_itself_and_from_another(
    run: Callable[..., Any], call: Callable[..., Any], tmp_path: Path
) -> None:
    base = tmp_path / "base.bin"
    saved = run("-p", TEXT, "-c", 32, "--save-all-logits", base)
    assert saved.code == 0 and saved.out == run("-p", TEXT, "-c", 32).out
    same = run("--kl-divergence", "--kl-divergence-base", base)
    assert same.code == 0
    head, *rows = same.out.partition("\n\n")[0].splitlines()
    assert head.split() == ["chunk", "PPL", "ln(PPL(Q)/PPL(base))", "KL", "Divergence", "Δp", "RMS", "Same", "top", "p"]
    ppl = re.findall(r"\]([\d.]+),", saved.out)
    assert [float(row.split()[1]) for row in rows] == pytest.approx([float(x) for x in ppl], rel=1e-6) and len(ppl) > 6
    statistics = dict(re.findall(r"^(.+?) *: +(.+)$", same.out, re.MULTILINE))
    assert abs(float(statistics["Mean    KLD"].split()[0])) < 1e-4
    assert float(statistics["Same top p"].split()[0]) > 99
    assert statistics["Mean PPL(Q)"].split()[0][:6] == ppl[-1][:6]
    other = write_text_model(tmp_path / "other.gguf", seed=6)
    far = call(perplexity.main, "-m", other, "--kl-divergence", "--kl-divergence-base", base)
    statistics = dict(re.findall(r"^(.+?) *: +(.+)$", far.out, re.MULTILINE))
    assert far.code == 0 and float(statistics["Mean    KLD"].split()[0]) > 0.1
    assert list(statistics)[:4] == [
        "Mean PPL(Q)", "Mean PPL(base)", "Cor(ln(PPL(Q)), ln(PPL(base)))", "Mean ln(PPL(Q)/PPL(base))",
    ]  # fmt: skip
    quantiles = [float(x) for x in re.findall(r"KLD: +(\S+)$", far.out, re.MULTILINE)]
    assert len(quantiles) == 11 and quantiles == sorted(quantiles, reverse=True)


def test_too_few_values_for_statistics(run: Callable[..., Any], tmp_path: Path) -> None:
    base = tmp_path / "base.bin"
    run("-p", TEXT, "-c", 32, "--chunks", 2, "--save-all-logits", base)
    out = run("--kl-divergence", "--kl-divergence-base", base).out
    assert len(out.splitlines()) == 4 and "====" not in out


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("", 2, "no text: give one with -f"),
        ("-p x -f y", 2, "give one of -f, -bf and -p"),
        ("-f /nonexistent", 1, "/nonexistent: No such file"),
        ("-p hello", 1, "tokens; a context of 512 needs at least 1024"),
        ("-p hello -c 2", 1, "a context of 2 tokens predicts nothing"),
        ("-p x -c 0", 2, "-c '0': must be at least 1"),
        ("-p x --ppl-stride 4", 2, "--ppl-stride 4: not implemented here"),
        ("--hellaswag", 2, "--hellaswag: not implemented here"),
        ("--kl-divergence", 2, "--kl-divergence needs the file of predictions"),
        ("--kl-divergence --kl-divergence-base /nonexistent", 1, "/nonexistent: No such file"),
        ("--kl-divergence --kl-divergence-base MODEL", 1, "not a file of predictions: it begins with b'GGUF"),
        ("--chunkz 3", 2, "unknown flag --chunkz; the nearest known one is --chunks"),
    ],
)
def test_mistakes(run: Callable[..., Any], model: Path, line: str, code: int, words: str) -> None:
    outcome = run(*line.replace("MODEL", str(model)).split())
    assert outcome.code == code and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and words in outcome.err


def test_predictions_of_another_vocabulary(run: Callable[..., Any], tmp_path: Path) -> None:
    import numpy as np

    from pyggml.perplexity import BaseWriter

    with BaseWriter.open(tmp_path / "base", 4, 7, 1, np.zeros(4, np.int32)) as writer:
        writer.add(np.zeros((1, 7), np.float32))
    outcome = run("--kl-divergence", "--kl-divergence-base", tmp_path / "base")
    assert outcome.code == 2 and "predictions of 7 tokens; the model has 267" in outcome.err


def test_a_text_of_no_chunks(run: Callable[..., Any]) -> None:
    outcome = run("-p", TEXT, "-c", 32, "--chunks", 0)
    assert outcome.code == 0 and outcome.out == "\n"


def test_flags_of_the_completion_tool(run: Callable[..., Any]) -> None:
    flags = ("--temp", 0, "-s", 3, "--no-warmup", "-np", 4)
    outcome = run("-p", TEXT, "-c", 32, "--chunks", 1, *flags, "-ub", 8, "-fa", "off")
    assert outcome.code == 0 and "note: --temp, -s, --no-warmup, -np make no difference here" in outcome.err


def test_it_helps_without_numpy() -> None:
    code = "import sys; from pyggml_cli.perplexity import main; main(['--help']); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_flags_of_the_model_reach_it(run: Callable[..., Any]) -> None:
    flags = ["-p", TEXT, "-c", 32, "--chunks", 2]
    plain = run(*flags)
    changed = run(*flags, "--override-kv", "llama.context_length=int:8", "--rope-freq-base", 5, "--no-mmap", "-nkvo")
    assert changed.code == 0 and "the model was trained on 8 tokens, not 32" in changed.err
    assert plain.out != changed.out
    assert run(*flags, "-ot", "x=NONE").code == 1 and run("-cl").err.startswith("error: -cl: not implemented here: ")


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (1, 5, 2.0, None),
        (1, 7, 2.0, "2.00 seconds a chunk, about 12 s left"),
        (2, 102, 3.0, "1.50 seconds a chunk, about 2 min 30 s left"),
        (1, 601, 12.5, "12.50 seconds a chunk, about 2 h 5 min left"),
        (5, 5, 900.0, None),
    ],
)
def test_how_long_it_will_take(done: int, total: int, seconds: float, line: str | None) -> None:
    assert progress.estimate(done, total, seconds, "chunk") == line


def test_long_texts_say_so_after_the_first_chunk(
    call: Callable[..., Any], model: Path, reference: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WORTH_SAYING", 0.0)
    text = tmp_path / "text"
    text.write_text("hello world " * 60)
    for n_batch, said in ((32, 1), (64, 1), (2048, 0)):  # after the first one, after the first two; all at once
        outcome = call(perplexity.main, "-m", model, "-f", text, "-c", 32, "--chunks", 3, "-b", n_batch)
        assert outcome.code == 0 and outcome.err.count("seconds a chunk, about") == said
        assert "seconds a" not in outcome.out


def test_how_long_it_will_take_is_told_of_chunks_that_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(progress, "estimate", lambda done, total, seconds, what: asked.append((done, total)))
    for n_chunks, n_together in ((12, 4), (12, 1), (3, 3)):
        with perplexity._progress(n_chunks, n_together) as tell:
            for done in range(1, n_chunks + 1):
                tell(done)
    assert asked == [(4, 12), (1, 12)]
