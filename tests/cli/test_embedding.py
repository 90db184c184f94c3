"""pyggml-embedding: its formats, its numbers against llama.cpp of protocol 8.0.0, and that mistakes end in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_files import LIMIT
from peer_archs import ArchPeer, Script, nmse
from pyggml_cli import embedding
from pyggml_cli.embedding_output import Printed, cosine
from text_model import write_text_model
from tiny_encoders import write

from pyggml.gguf import GGUFFile
from pyggml.model.pooling import POOLINGS
from pyggml.runtime.embedder import normalised
from pyggml.runtime.ranking import TEMPLATE, joined
from pyggml.tokenizer import Tokenizer

TEXTS = ["a cat", "the dog, barking", "a dog er?"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    write(path, "bert", vocabulary=True)
    return path


@pytest.fixture
def run(call: Callable[..., Any], bert: Path) -> Callable[..., Any]:
    return lambda *args: call(embedding.main, "-m", bert, *args)


def tokenizer_of(path: Path) -> Tokenizer:
    with GGUFFile.open(path) as file:
        return Tokenizer.from_metadata(file.metadata)


def theirs(arch_peer: ArchPeer, path: Path, kind: str, texts: list[str]) -> list[np.ndarray]:
    """Of each text, or of each token."""
    ids = [tokenizer_of(path).encode(text, parse_special=True) for text in texts]
    options = {"n_ctx": 512, "n_ubatch": 512, "n_seq_max": 8, "unified": True, "flash": True, "embeddings": True}
    script = Script(**options, pooling=POOLINGS.index(kind))
    script.batch([(token, i, seq, True) for seq, text in enumerate(ids) for i, token in enumerate(text)])
    for seq in range(len(texts) if kind != "none" else 0):
        script.do("pooled", seq)
    return list(arch_peer.rows(path, script))


@pytest.mark.parametrize("kind", ["none", "mean", "cls", "last"])
def test_numbers_are_the_peers(kind: str, run: Callable[..., Any], bert: Path, arch_peer: ArchPeer) -> None:
    for normalise in (-1, 2, 3):
        outcome = run(
            "-p", "\n".join(TEXTS), "--pooling", kind, "--embd-output-format", "raw", "--embd-normalize", normalise
        )
        assert outcome.code == 0
        lines = outcome.out.split("\n")
        assert lines[-2:] == ["", ""]
        expected = [normalised(row, normalise) for row in theirs(arch_peer, bert, kind, TEXTS)]
        assert len(lines) - 2 == len(expected)
        assert nmse(np.array(expected), np.array([[float(x) for x in line.split(" ")] for line in lines[:-2]])) < LIMIT


def test_the_files_pooling_counts_and_the_variable(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    as_file = run("-p", "a cat", "--embd-output-format", "array").out
    assert as_file == run("-p", "a cat", "--embd-output-format", "array", "--pooling", "cls").out
    monkeypatch.setenv("LLAMA_ARG_POOLING", "mean")
    said = run("-p", "a cat", "--embd-output-format", "array").out
    assert said != as_file and len(json.loads(said)[0]) == len(json.loads(as_file)[0]) == 64


def test_ranks(run: Callable[..., Any], bert: Path, arch_peer: ArchPeer) -> None:
    """Query and document stand on both sides of a tab, and SEP goes between them; scores are not normalised unless asked."""
    outcome = run("-p", "a cat\tthe dog\na cat\ta cat", "--pooling", "rank")
    found = re.findall(r"^rerank score (\d): +(-?\d+\.\d{3}) \[([abc])\]$", outcome.out, re.MULTILINE)
    expected = theirs(arch_peer, bert, "rank", ["a cat[SEP]the dog", "a cat[SEP]a cat"])
    assert [(int(i), label) for i, _, label in found] == [(i, label) for i in (0, 1) for label in "abc"]
    assert np.allclose([float(x) for _, x, _ in found], np.concatenate(expected), atol=5e-3)
    assert (
        run("-p", "a cat#the dog", "--cls-separator", "#", "--pooling", "rank").out.split("\n")[1:4]
        == (outcome.out.split("\n")[1:4])
    )


def test_a_template_for_ranks(bert: Path) -> None:
    tokenizer = tokenizer_of(bert)
    assert joined(tokenizer, {}, ["q", "d", "e"]) == "q[SEP]d[SEP]e"
    assert joined(tokenizer, {TEMPLATE: "<{query}|{document}>"}, ["q", "d"]) == "<q|d>"
    assert joined(tokenizer, {TEMPLATE: "<{query}|{document}>"}, ["{document}", "{query}"]) == "<{document}|{query}>"
    tokenizer.add_sep = False
    assert joined(tokenizer, {}, ["q", "d"]) == "qd"


def test_separators_files_and_escapes(run: Callable[..., Any], tmp_path: Path) -> None:
    expected = run("-p", "a cat\nthe dog", "--embd-output-format", "array").out
    assert run("-p", r"a cat\nthe dog", "--embd-output-format", "array").out == expected
    assert run("-p", "a cat<#>the dog", "--embd-separator", "<#>", "--embd-output-format", "array").out == expected
    (tmp_path / "texts").write_text("a cat\nthe dog\n")
    assert run("-f", tmp_path / "texts", "--embd-output-format", "array").out == expected
    one_more = run("-bf", tmp_path / "texts", "--embd-output-format", "array").out
    assert one_more.startswith(expected[:-4]) and len(json.loads(one_more)) == 3


def test_many_texts_go_in_several_batches(run: Callable[..., Any]) -> None:
    """300 texts: no more than 256 are computed at once, and no more tokens than -b says."""
    texts = "\n".join("abc" if i % 3 else "dog" for i in range(300))
    together = run("-p", texts, "--embd-output-format", "array")
    apart = run("-p", texts, "--embd-output-format", "array", "-b", 20)
    a, b = (np.array(json.loads(one.out)) for one in (together, apart))
    assert a.shape == (300, 64) and np.allclose(a, b, atol=1e-3)
    assert np.allclose(a[0], a[3], atol=1e-3) and not np.allclose(a[0], a[1], atol=1e-2)


# Formats


ROWS = [np.array([0.6, -0.8, 0.0, 1.0], np.float32), np.array([1.0, 0.0, 0.0, -0.25], np.float32)]


def page(
    kind: str, *, pooling: str = "mean", whole: bool = False, rows: list[np.ndarray] = ROWS, labels: Any = None
) -> str:
    return Printed(rows, ["a longer text", "é"], pooling, whole, labels).page(kind)


def test_formats_for_programs() -> None:
    a, b = "[0.6000000,-0.8000000,0.0000000,1.0000000]", "[1.0000000,0.0000000,0.0000000,-0.2500000]"
    assert page("array") == f"[{a},{b}]\n\n"
    assert page("raw") == f"{a[1:-1].replace(',', ' ')}\n{b[1:-1].replace(',', ' ')}\n\n"
    items = ",\n".join(
        f'    {{\n      "object": "embedding",\n      "index": {i},\n      "embedding": {one}\n    }}'
        for i, one in enumerate((a, b))
    )
    start = f'{{\n  "object": "list",\n  "data": [\n{items}\n  ]'
    assert page("json") == f"{start}\n}}\n\n"
    assert page("json+") == (
        f'{start},\n  "cosineSimilarity": [\n    [  1.00,   0.24 ],\n    [  0.24,   1.00 ]\n  ]\n}}\n\n'
    )
    assert json.loads(page("json+"))["cosineSimilarity"][0][0] == 1
    assert page("array", whole=True, rows=[np.array([32760.0, -7.4], np.float32)]) == "[[32760,-7]]\n\n"


def test_formats_for_people() -> None:
    a, b = " 0.600000 -0.800000  0.000000  1.000000 ", " 1.000000  0.000000  0.000000 -0.250000 "
    assert page("") == (
        f"\nembedding 0: {a}\nembedding 1: {b}\n\ncosine similarity matrix:\n\na long     é \n"
        "  1.00   0.24 a longer t\n  0.24   1.00 é\n\n"
    )
    assert page("", rows=ROWS[:1]) == f"\nembedding 0: {a}\n\n"
    assert page("", pooling="none", rows=ROWS[:1]) == f"\nembedding 0: {a[:30]} ... {a[10:]}\n\n"
    assert page("", whole=True, rows=[np.array([32760.0, -7.4], np.float32)]) == "\nembedding 0:  32760     -7 \n\n"
    ranks = [np.array([0.25, -1.5], np.float32)]
    assert page("", pooling="rank", rows=ranks, labels=["no", ""]) == (
        "\nrerank score 0:    0.250 [no]\nrerank score 0:   -1.500 [1]\n\n"
    )
    assert page("", pooling="rank", rows=[ranks[0][:1]]) == "\nrerank score 0:    0.250\n\n"


def test_cosine() -> None:
    zero = np.zeros(2, np.float32)
    assert (cosine(zero, zero), cosine(zero, np.ones(2, np.float32))) == (1.0, 0.0)
    assert cosine(ROWS[0], -ROWS[0]) == pytest.approx(-1)


# Mistakes


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "no text: give one with -p or -f"),
        (("-p", "x", "-f", "y"), 2, "give one of -p, -f and -bf"),
        (("-p", "x", "--embd-separator", ""), 2, "must not be empty"),
        (("-p", "x", "--pooling", "most"), 2, "--pooling"),
        (("-p", "x", "--embd-output-format", "xml"), 2, "--embd-output-format"),
        (("-f", "/nowhere/x"), 1, "/nowhere/x"),
        (("-p", "a " * 200), 1, "has 202 tokens, the model knows 128 positions"),
        (
            ("-p", "a " * 100, "-b", "64"),
            1,
            "text 1 of 1 has 102 tokens, at most 64 are computed at once: -b 102 takes it",
        ),
        (("-p", "a", "--embd-normalize", "1" + "0" * 400), 2, "must be from -1 to 2147483647"),
        (("-p", "x", "--temp", "1", "--grammar", "x"), 0, "make no difference here"),
    ],
)
def test_mistakes_end_in_one_line(args: tuple[str, ...], code: int, message: str, run: Callable[..., Any]) -> None:
    outcome = run(*args)
    assert outcome.code == code and message in outcome.err and "Traceback" not in outcome.err
    if code:
        assert outcome.err.count("\n") == 1 and not outcome.out


def test_a_line_without_a_token_is_named(call: Callable[..., Any], tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text("a\n\nb\n")
    outcome = call(embedding.main, "-m", write_text_model(tmp_path / "m.gguf"), "-f", texts)
    said = "error: text 2 of 3 is empty, and this model puts no token before or after a text\n"
    assert (outcome.code, outcome.out, outcome.err) == (1, "", said)


@pytest.mark.parametrize("x", [[3.0, -4.0, 0.5], [3e38, -1e38, 0.0], [1e-30, 2e-30, 0.0]])
def test_a_norm_whose_powers_have_no_room(x: list[float], recwarn: pytest.WarningsRecorder) -> None:
    """The higher, the nearer to the largest."""
    for kind in (1000, 1_000_000, (1 << 31) - 1):
        np.testing.assert_allclose(
            normalised(np.float32(x), kind), np.float32(x) / np.abs(np.float32(x)).max(), rtol=2e-3
        )
    assert not recwarn.list


def test_other_commands_refuse_encoders_in_one_line(call: Callable[..., Any], bert: Path) -> None:
    from pyggml_cli import cli, perplexity

    text = "a cat a dog a cat a dog"
    for main, more in ((cli.main, ("-n", 2)), (perplexity.main, ("-c", 4))):
        outcome = call(main, "-m", bert, "-p", text, *more)
        assert outcome.code == 1 and "a bert model makes embeddings (pyggml-embedding), it cannot go on" in outcome.err
        assert outcome.err.count("error:") == 1 and "Traceback" not in outcome.err
