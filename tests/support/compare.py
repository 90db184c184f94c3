"""Two engines' logits side by side: the prompts, the prose, and the measures of difference.

Owns what is compared and how.
"""

import inspect
import io
import json
import re
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kept import file_digest
from peer import Peer

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


def kl_each(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """KL(theirs || ours) of each row of logits, in nats; a row at a time, as vocabularies are large."""
    rows = theirs.reshape(-1, theirs.shape[-1])
    found = []
    for a, b in zip(rows, ours.reshape(rows.shape), strict=True):
        p, q = log_softmax(a), log_softmax(b)
        found.append(float((np.exp(p) * (p - q)).sum()))
    return np.array(found)


def mean_kl(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Mean over the rows of KL(theirs || ours), in nats."""
    return float(kl_each(theirs, ours).mean())


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


def ask_peer(peer: Peer, command: str, model: Path, texts: Sequence[Sequence[int]], **options: Any) -> np.ndarray:
    """What peer_forced.py's command says of these texts (lists of tokens). Options: n_predict, flash_attn.

    On one thread: two that wait for each other take many times longer on a machine that also does other things.
    What is not too large is kept in the cache.
    """
    p = _asked(model, texts, options)
    answer = peer.kept(WORKER, [command, {**p, "model": file_digest(model)}], lambda: _ask(peer, command, p))
    return np.asarray(np.load(io.BytesIO(answer)))


def without_fusing(peer: Peer, model: Path, texts: Sequence[Sequence[int]], fused: np.ndarray, n_predict: int) -> float:
    """How far the peer's own attention without fusing is from `fused`, its logits with it (mean_kl); kept as a number."""
    p = _asked(model, texts, {"n_predict": n_predict, "flash_attn": False})

    def make() -> bytes:
        return struct.pack("<d", mean_kl(fused, np.load(io.BytesIO(_ask(peer, "logits", p)))))

    answer = peer.kept(WORKER, [inspect.getsource(mean_kl), {**p, "model": file_digest(model)}], make)
    return float(struct.unpack("<d", answer)[0])


def _asked(model: Path, texts: Sequence[Sequence[int]], options: dict[str, Any]) -> dict[str, Any]:
    n_ctx = -(-(max(map(len, texts)) + options.get("n_predict", 0)) // 256) * 256
    return {"model": str(model), "texts": texts, "flash_attn": True, "n_ctx": n_ctx, **options}


def _ask(peer: Peer, command: str, asked: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as fresh:
        out = Path(fresh) / "out.npy"
        peer.run(WORKER, command, json.dumps({**asked, "out": str(out)}))
        return out.read_bytes()
