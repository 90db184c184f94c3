"""Real files of other architectures than llama held against llama.cpp: greedy tokens, logits, perplexity, as SmolLM2's files
are (test_against_llamacpp.py)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import PROMPTS, agreement, ask_peer, losses, mean_kl, prose, without_fusing
from peer_build import PeerMissing
from real_models import REAL, ensure_model

from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.tokenizer import Tokenizer

N_GREEDY = 24
N_WINDOWS, WINDOW = 3, 700
"""Tokens of a window: more than gemma3's sliding window of 512 holds."""


@pytest.fixture(scope="module", params=REAL)
def file(request: pytest.FixtureRequest) -> Path:
    try:
        return ensure_model(request.param)
    except PeerMissing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def context(file: Path) -> Iterator[Context]:
    model = Model.load(file)
    opened = Context(model, n_ctx=768, n_threads=2)
    yield opened
    opened.close()
    model.close()


@pytest.fixture(scope="module")
def prompts(peer: Any, file: Path, context: Context) -> list[list[int]]:
    tokenizer = Tokenizer.from_metadata(context.model.file.metadata)
    found = [tokenizer.encode(prompt, add_special=True) for prompt in PROMPTS]
    assert found == peer.tokenize(file, PROMPTS, add_special=True)
    return found


def test_logits_and_greedy_tokens(
    peer: Any, file: Path, context: Context, prompts: Any, follow: Callable[..., Any]
) -> None:
    made = ask_peer(peer, "greedy", file, prompts, n_predict=N_GREEDY)
    texts = [prompt + tokens for prompt, tokens in zip(prompts, made.tolist(), strict=True)]
    fused = ask_peer(peer, "logits", file, texts, n_predict=N_GREEDY)
    own = without_fusing(peer, file, texts, fused, N_GREEDY)
    rows = np.stack([context.decode(text[:-1], n_past=0, logits="all")[-N_GREEDY:] for text in texts])
    kl, agree = mean_kl(fused, rows), agreement(fused, rows)
    greedy = [[int(row.argmax()) for row in follow(context, prompt, None, N_GREEDY)] for prompt in prompts]
    n_equal = int((np.array(greedy) == made).all(-1).sum())
    print(f"{file.name}: KL {kl:.2e}, llama.cpp's own {own:.2e}, argmax {agree:.4f}, {n_equal} of {len(prompts)} equal")
    assert kl <= max(2 * own, 2e-4) and agree >= 0.93 and n_equal >= len(prompts) // 2


def test_perplexity(peer: Any, file: Path, context: Context) -> None:
    tokenizer = Tokenizer.from_metadata(context.model.file.metadata)
    tokens = tokenizer.encode(prose(16_000), add_special=True)[: N_WINDOWS * WINDOW]
    windows = [tokens[i : i + WINDOW] for i in range(0, len(tokens), WINDOW)]
    assert len(windows[-1]) == WINDOW
    theirs = ask_peer(peer, "losses", file, windows)
    mine = [losses(context.decode(window[:-1], n_past=0, logits="all"), window[1:]) for window in windows]
    apart = np.ravel(mine) - theirs
    ratio, error = float(np.exp(apart.mean())), float(apart.std() / len(apart) ** 0.5)
    print(f"{file.name}: perplexity {np.exp(theirs.mean()):.3f}, ours {ratio:.5f} +- {error:.5f} of it")
    assert abs(ratio - 1) < min(0.01, 4 * error + 0.002)
