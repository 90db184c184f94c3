"""Perplexity and divergence: their definitions written out plainly, and llama.cpp's logits under them."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import ask_peer, prose
from hypothesis import given, settings
from hypothesis import strategies as st
from pyggml_cli import perplexity as command
from text_model import BOS, write_text_model

from pyggml.errors import ContextError
from pyggml.perplexity import BaseFile, BaseWriter, Divergence, Losses, count_chunks, losses_of, score
from pyggml.perplexity.base_file import BaseFileError, layout, pack_rows, unpack_rows
from pyggml.perplexity.divergence import mean, percentile
from pyggml.runtime.batch import Batch

F = np.float32


def plain_loss(row: np.ndarray, token: int) -> float:
    wide = [float(x) for x in row]
    most = max(wide)
    return math.log(sum(math.exp(x - most) for x in wide)) + most - wide[token]


def plain_perplexity(losses: list[float]) -> tuple[float, float]:
    n = len(losses)
    average = sum(losses) / n
    error = math.sqrt((sum(x * x for x in losses) / n - average * average) / (n - 1))
    return math.exp(average), error * math.exp(average)


def logits_and_tokens(seed: int, n: int, n_vocab: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, rng.uniform(0, 6), (n, n_vocab)).astype(F)
    return rows, rng.integers(0, n_vocab, n).astype(np.int32)


sizes = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 33))


@settings(max_examples=60)
@given(sizes)
def test_losses(size: tuple[int, int, int]) -> None:
    rows, tokens = logits_and_tokens(*size)
    wanted = [plain_loss(row, token) for row, token in zip(rows, tokens, strict=True)]
    np.testing.assert_allclose(losses_of(rows, tokens), wanted, rtol=1e-5, atol=1e-5)


def test_the_estimate_and_its_error() -> None:
    rows, tokens = logits_and_tokens(3, 40, 50)
    losses = Losses()
    for i in range(0, 40, 7):
        losses.add(losses_of(rows[i : i + 7], tokens[i : i + 7]))
    ppl, error = plain_perplexity([plain_loss(row, token) for row, token in zip(rows, tokens, strict=True)])
    assert losses.perplexity == pytest.approx(ppl, rel=1e-6) and losses.error is not None
    assert losses.error * losses.perplexity == pytest.approx(error, rel=1e-5)
    assert Losses(2, 2.0, 2.0).error is None


class Decoder:
    """Logits that tell the tokens and the place they were computed for."""

    def __init__(self, n_ubatch: int, n_seq_max: int = 1) -> None:
        self.n_ubatch, self.n_seq_max = n_ubatch, n_seq_max
        self.past: dict[int, list[int]] = {}
        self.most = 0  # logits of one call
        self.together: set[int] = set()  # sequences of one call

    def clear(self) -> None:
        self.past = {seq: [] for seq in range(self.n_seq_max)}

    def decode(self, batch: Batch) -> np.ndarray:
        assert batch.n > 0
        rows = []
        for token, pos, seq, output in zip(batch.tokens, batch.pos, batch.seq, batch.outputs, strict=True):
            past = self.past[int(seq)]
            assert pos == len(past)
            past.append(int(token))
            if output:
                rows.append([len(past) - 1, sum(past)])
        self.most = max(self.most, len(rows))
        self.together.add(len(set(batch.seq.tolist())))
        return np.array(rows, F).reshape(-1, 2)


@pytest.mark.parametrize("n_ctx", [3, 4, 9, 16])
@pytest.mark.parametrize("n_ubatch", [1, 2, 5, 100])
@pytest.mark.parametrize("n_seq", [1, 2, 3, 6])
@pytest.mark.parametrize("bos", [None, 1000])
def test_which_tokens_are_scored(n_ctx: int, n_ubatch: int, n_seq: int, bos: int | None) -> None:
    tokens = np.random.default_rng(n_ctx).integers(0, 100, 5 * n_ctx + 2)
    decoder = Decoder(n_ubatch, n_seq)
    found = list(score(decoder, tokens, n_ctx, 4, bos))
    assert [part.chunk for part in found] == sorted(part.chunk for part in found)
    for chunk in range(4):
        mine = [int(x) for x in tokens[chunk * n_ctx : (chunk + 1) * n_ctx]]
        wanted = [mine[i + 1] for i in range(n_ctx // 2, n_ctx - 1)]
        parts = [part for part in found if part.chunk == chunk]
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert np.concatenate([part.tokens for part in parts]).tolist() == wanted
        if bos is not None:
            mine[0] = bos
        rows = [[i, sum(mine[: i + 1])] for i in range(n_ctx // 2, n_ctx - 1)]
        assert np.concatenate([part.logits for part in parts]).tolist() == rows
    assert decoder.most <= n_ubatch and max(decoder.together) == min(n_seq, 4)


def test_how_many_chunks() -> None:
    assert [count_chunks(n, 8) for n in (16, 23, 24)] == [2, 2, 3]
    assert [count_chunks(100, 8, most) for most in (-1, 0, 5, 99)] == [12, 0, 5, 12]
    with pytest.raises(ContextError, match="the text has 15 tokens; a context of 8 needs at least 16"):
        count_chunks(15, 8)
    with pytest.raises(ContextError, match="a context of 2 tokens predicts nothing: at least 3"):
        count_chunks(100, 2)


# ---- the file of predictions


def plain_record(row: np.ndarray) -> bytes:
    """perplexity.cpp, log_softmax with log_prob, one value at a time in its types."""
    most, least = max(row), max(min(row), max(row) - F(16))
    total = 0.0
    for x in row:
        total += float(np.exp(x - most))
    log_sum = F(math.log(total))
    scale = (most - least) / F(65535)
    q = [0] * len(row)
    if scale:
        inverse = F(1) / scale
        q = [int(np.rint(inverse * (x - least))) if x > least else 0 for x in row]
    q += [0] * (len(q) % 2)
    return struct.pack(f"<ff{len(q)}H", scale, least - most - log_sum, *q)


@settings(max_examples=60)
@given(sizes)
def test_predictions_are_kept_as_the_peer_keeps_them(size: tuple[int, int, int]) -> None:
    rows, _ = logits_and_tokens(*size)
    rows[0] = rows[0, 0]  # all equally likely
    records = pack_rows(rows)
    for record, row in zip(records, rows, strict=True):
        ours, theirs = (np.frombuffer(data, layout(len(row)))[0] for data in (record.tobytes(), plain_record(row)))
        assert ours["scale"] == theirs["scale"] and (ours["q"] == theirs["q"]).all()
        assert ours["least"] == pytest.approx(theirs["least"], rel=1e-6)  # NumPy's exp is not C's
    logs = unpack_rows(records, rows.shape[1])
    wanted = np.array([[-plain_loss(row, i) for i in range(len(row))] for row in rows])
    near = wanted > wanted.max(axis=1, keepdims=True) - 15.9
    np.testing.assert_allclose(logs[near], wanted[near], atol=2e-4)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Four chunks of 6 tokens, 2 scored each, of a vocabulary of 5."""
    path = tmp_path / "base.bin"
    rows, _ = logits_and_tokens(1, 8, 5)
    with BaseWriter.open(path, 6, 5, 4, np.arange(30, dtype=np.int32) % 5) as writer:
        writer.add(rows[:3])
        writer.add(rows[3:])
    return path


def test_the_layout_of_the_file(base: Path) -> None:
    data = base.read_bytes()
    rows, _ = logits_and_tokens(1, 8, 5)
    assert data[:8] == b"_logits_" and struct.unpack("<3i", data[8:20]) == (6, 5, 4)
    assert struct.unpack("<24i", data[20:116]) == tuple(i % 5 for i in range(24))
    assert data[116:] == pack_rows(rows).tobytes() and len(data) == 116 + 8 * 20
    with BaseFile(base) as file:
        assert (file.n_ctx, file.n_vocab, file.n_chunk) == (6, 5, 4) and file.tokens.tolist() == [
            i % 5 for i in range(24)
        ]
        logs = np.concatenate([file.take(3), file.take(5)])
        np.testing.assert_array_equal(logs, unpack_rows(pack_rows(rows), 5))
        with pytest.raises(BaseFileError, match="ends within its predictions"):
            file.take(1)


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), BaseWriter.open(tmp_path / "x", 6, 5, 4, np.zeros(24, np.int32)):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d[:-1], "has 275 bytes, 4 chunks of 6 need 276"),
        (lambda d: d[:19], "ends within its head"),
        (lambda d: b"_logitz_" + d[8:], "not a file of predictions: it begins with b'_logitz_'"),
        (lambda d: d[:8] + struct.pack("<i", 2) + d[12:], "impossible numbers: n_ctx 2, n_vocab 5"),
        (lambda d: d[:12] + struct.pack("<i", -5) + d[16:], "impossible numbers"),
        (lambda d: d[:16] + struct.pack("<i", 2**31 - 1) + d[20:], "has 276 bytes, 2147483647 chunks of 6 need"),
        (lambda d: d[:20] + struct.pack("<i", 5) + d[24:], "token 5 is outside its vocabulary of 5"),
    ],
)
def test_damaged_files(base: Path, change: Callable[[bytes], bytes], words: str) -> None:
    base.write_bytes(change(base.read_bytes()))
    with pytest.raises(BaseFileError, match=words):
        BaseFile(base)


# ---- divergence


def test_divergence() -> None:
    n, n_vocab = 120, 40
    rows, tokens = logits_and_tokens(5, n, n_vocab)
    other = rows + np.random.default_rng(6).normal(0, 0.3, rows.shape).astype(F)
    other[3, 5] = other[3].max() - 30  # too unlikely to count
    logs = unpack_rows(pack_rows(other), n_vocab)
    result = Divergence()
    for i in range(0, n, 50):
        result.add(rows[i : i + 50], logs[i : i + 50], tokens[i : i + 50])
    ours = np.array([[-plain_loss(row, i) for i in range(n_vocab)] for row in rows])
    base = logs.astype(np.float64)
    kl = [
        sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True) if b > -16)
        for p, q in zip(ours, base, strict=True)
    ]
    np.testing.assert_allclose(result.divergences, kl, atol=2e-5)
    mine, theirs = ours[range(n), tokens], base[range(n), tokens]
    np.testing.assert_allclose(result.differences, np.exp(mine) - np.exp(theirs), atol=1e-5)
    assert result.same_top().value == np.mean(ours.argmax(1) == base.argmax(1)) < 1
    assert result.perplexity() == pytest.approx(plain_perplexity(list(-mine)), rel=1e-4)
    assert result.base_perplexity() == pytest.approx(plain_perplexity(list(-theirs)), rel=1e-4)
    ratio = result.log_ratio()
    assert ratio.value == pytest.approx(np.mean(theirs - mine), abs=1e-5)
    assert ratio.error == pytest.approx(np.std(mine - theirs) / math.sqrt(n - 1), rel=1e-3)  # of a difference of pairs
    assert result.ratio().value == pytest.approx(math.exp(ratio.value))
    assert result.difference().value == pytest.approx(result.perplexity().value - result.base_perplexity().value)
    assert result.correlation() == pytest.approx(np.corrcoef(mine, theirs)[0, 1], rel=1e-3)
    square = (np.exp(mine) - np.exp(theirs)) ** 2
    assert result.rms().value == pytest.approx(math.sqrt(square.mean()), rel=1e-3)
    assert mean(np.array(kl)).error == pytest.approx(np.std(kl) / math.sqrt(n - 1))
    values = np.array([0.0, 1.0, 2.0, 4.0])
    assert [percentile(values, p) for p in (0, 0.5, 0.9, 1)] == [0.0, 1.5, pytest.approx(3.4), 4.0]


# ---- against llama.cpp's logits

TEXT = "".join(f"hello world {i}, hold the wheel; " for i in range(16))


def peers_perplexity(
    peer: Any, model: Path, text: str, n_ctx: int, n_chunks: int, bos: int | None
) -> tuple[float, float]:
    (tokens,) = peer.tokenize(model, [text])
    chunks = [tokens[i * n_ctx : (i + 1) * n_ctx] for i in range(n_chunks)]
    first = n_ctx // 2
    fed = [[bos, *chunk[1:]] if bos is not None else chunk for chunk in chunks]
    rows = ask_peer(peer, "logits", model, fed, n_predict=n_ctx - 1 - first)
    pairs = [
        (row, token)
        for some, chunk in zip(rows, chunks, strict=True)
        for row, token in zip(some, chunk[first + 1 :], strict=True)
    ]
    return plain_perplexity([plain_loss(row, token) for row, token in pairs])


def estimate(out: str) -> tuple[float, float]:
    words = out.splitlines()[-1].split()
    assert words[:4] == ["Final", "estimate:", "PPL", "="] and words[5] == "+/-"
    return float(words[4]), float(words[6])


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_small_model(peer: Any, add_bos: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_text_model(tmp_path / "text.gguf", add_bos=add_bos)
    theirs = peers_perplexity(peer, model, TEXT, 40, 3, BOS if add_bos else None)
    assert command.main(["-m", str(model), "-p", TEXT, "-c", "40", "--chunks", "3", "-ub", "16"]) == 0
    assert estimate(capsys.readouterr().out) == pytest.approx(theirs, rel=1e-3)
    other = peers_perplexity(peer, model, TEXT, 40, 3, None if add_bos else BOS)
    assert other[0] != pytest.approx(theirs[0], rel=1e-3)  # a mutant: the other way with the first token


def test_smollm2(peer: Any, smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = peer.quantize_model(smollm2, None, "F16"), tmp_path / "text.txt"
    text.write_text(prose(6000) + "\n", encoding="utf-8")
    theirs = peers_perplexity(peer, model, prose(6000), 128, 4, None)
    assert command.main(["-m", str(model), "-f", str(text), "-c", "128", "--chunks", "4"]) == 0
    ours = estimate(capsys.readouterr().out)
    print(f"perplexity {ours}, llama.cpp's {theirs}")
    assert ours[0] == pytest.approx(theirs[0], rel=1e-3) and ours[1] == pytest.approx(theirs[1], rel=1e-2)
