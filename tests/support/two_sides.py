"""A small model for sessions between stock peers and ours, and how close their logits are to be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import N_VOCAB, write_llama

BATCHES = (1, 2, 3, 7, 8, 31, 32, 33, 64, 255, 512, 1024)
N_LAYER = 4
WEIGHTS = 4 * N_LAYER * (4 * 64 * 128 * 2 + 2 * 64 * 128 * 2 + 3 * 160 * 128)  # bytes of its layers' matrices


def small_model(path: Path) -> Path:
    """Heads of 64, as quantised KV caches need multiples of 32; enough layers for several devices."""
    return write_llama(path, n_layer=N_LAYER, n_embd=128, n_head=4, n_head_kv=2, head_k=64, head_v=64, n_ff=160)


def some_tokens(n: int, seed: int = 1) -> list[int]:
    made: list[int] = np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()
    return made


def prompts_of_all_sizes() -> list[tuple[Any, ...]]:
    """Steps for Peer.steps: each prompt begins anew."""
    tokens = some_tokens(max(BATCHES))
    each = [(("clear", "a"), ("decode", "a", tokens[:n])) for n in BATCHES]
    return [("open", "a"), *(step for pair in each for step in pair)]


def contexts_that_come_and_go(seed: int = 1) -> list[tuple[Any, ...]]:
    """Two contexts take turns, one is freed while the other lives, a third one comes; 16 decodes."""
    tokens = some_tokens(64, seed)
    steps: list[tuple[Any, ...]] = [("open", "a"), ("open", "b", {"flash_attn_type": 1, "n_ctx": 512})]
    steps += [("decode", "a", tokens[:9]), ("decode", "b", tokens[9:30])]
    for i in range(3):
        steps += [("decode", "a", [tokens[30 + i]]), ("decode", "b", [tokens[40 + i]])]
    steps += [("free", "a"), ("decode", "b", [tokens[50]]), ("decode", "b", [tokens[51]])]
    steps += [("open", "c"), ("decode", "c", tokens[:5]), ("decode", "b", [tokens[52]])]
    steps += [
        ("decode", "c", [tokens[53]]),
        ("free", "b"),
        ("decode", "c", [tokens[54]]),
        ("decode", "c", tokens[55:58]),
    ]
    steps += [("decode", "c", [tokens[58]])]
    return steps


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Normalised squared error of each row of a."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    result: np.ndarray = np.square(a - b).sum(-1) / np.square(b).sum(-1)
    return result


def assert_same_logits(got: np.ndarray, expected: np.ndarray, limit: float = 1e-4) -> None:
    """Each row within `limit`; and the rows differ from each other by far more."""
    assert got.shape == expected.shape
    errors = distance(got, expected)
    assert (errors < limit).all(), errors
    if len(got) > 1:
        assert (distance(np.roll(got, 1, axis=0), expected) > 100 * limit).all(), "this test could not fail"


def listed(steps: Sequence[Sequence[Any]]) -> int:
    """How many decodes there are."""
    return sum(step[0] == "decode" for step in steps)
