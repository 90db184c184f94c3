"""Two engines' logits side by side: the prompts, the prose, and the measures of difference.

Owns what is compared and how; must not know how either engine computes.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peer import Peer

from pyggml.cachedir import cache_dir

WORKER = Path(__file__).with_name("peer_forced.py")

PROMPTS = [
    "Hello, my name is",
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at a temperature of",
    "To bake a simple loaf of bread, you need flour,",
    "The three laws of motion were first stated by",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "Q: Why is the sky blue?\nA:",
    "In computer science, a hash table is",
    "The old man looked at the storm clouds and said to his grandson:",
    "Breaking news: scientists have discovered that",
    "My favourite season is autumn, because",
]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(-1, keepdims=True)))


def losses(logits: np.ndarray, tokens: Sequence[int]) -> list[float]:
    """-ln p of each of `tokens`, by the row of logits that stands before it."""
    return [-float(log_softmax(row)[token]) for row, token in zip(logits, tokens, strict=True)]


def mean_kl(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Mean over the rows of KL(theirs || ours), in nats."""
    total, rows = 0.0, theirs.reshape(-1, theirs.shape[-1])
    for a, b in zip(rows, ours.reshape(rows.shape), strict=True):
        p, q = log_softmax(a), log_softmax(b)
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(rows)


def agreement(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The share of rows with the same most likely token."""
    return float((theirs.argmax(-1) == ours.argmax(-1)).mean())


def prose(n_characters: int) -> str:
    """English prose that every Python brings: paragraphs of plain sentences from its language reference."""
    from pydoc_data.topics import topics

    paragraphs: list[str] = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            text = " ".join(paragraph.split())
            letters = sum(c.isalpha() or c.isspace() for c in text)
            if len(text) > 200 and letters > 0.93 * len(text) and re.match(r"[A-Z].*[.]$", text):
                paragraphs.append(text)
    text = "\n\n".join(dict.fromkeys(paragraphs))
    assert len(text) > n_characters, len(text)
    return text[:n_characters]


def peer_follow(
    peer: Peer,
    model: Path,
    prompts: Sequence[Sequence[int]],
    n_predict: int,
    *,
    forced: Sequence[Sequence[int]] | None = None,
    flash_attn: bool = True,
) -> tuple[list[list[int]], np.ndarray]:
    """llama.cpp after each prompt: its n_predict greedy tokens (or those `forced` on it), and the logits before each,
    float32 (prompts, n_predict, n_vocab). A prompt is one batch, then tokens come one by one, as when it generates."""
    p = {"model": str(model), "prompts": prompts, "n_predict": n_predict, "forced": forced, "flash_attn": flash_attn}
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out"
        peer.run(WORKER, json.dumps({**p, "out": out, "n_ctx": 512, "n_threads": 2}))
        return json.loads(Path(out + ".json").read_text()), np.load(out + ".npy")


def peer_losses(peer: Peer, model: Path, windows: Sequence[Sequence[int]], flash_attn: bool = True) -> np.ndarray:
    """llama.cpp's -ln p of every token of each window but the first; kept in the cache, as it takes a while."""
    n_ctx = -(-max(map(len, windows)) // 256) * 256
    p = {"model": str(model), "windows": windows, "flash_attn": flash_attn, "n_ctx": n_ctx, "n_threads": 2}
    stat = model.stat()
    key = json.dumps([peer.site.parent.name, model.name, stat.st_size, stat.st_mtime_ns, p, WORKER.read_text()])
    folder = cache_dir("peer") / "losses"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            peer.run(WORKER, json.dumps({**p, "out": f"{fresh}/out"}))
            Path(f"{fresh}/out.npy").rename(kept)
    return np.load(kept)
