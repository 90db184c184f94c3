"""llama4 at the edge of a chunk, beside llama.cpp, and that each part that only shows there is needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_files import TOKENS
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse

from pyggml.model.attention import Attention
from pyggml.model.model import Model
from pyggml.runtime.context import Context

CHUNK = 8192
BEFORE = [int(t) for t in np.random.default_rng(5).integers(0, 128, CHUNK - 30)]
LIMIT = 5e-6
"""Angles of positions as large as these have errors in F32, as the reference computes them; ours are F64."""

Case = tuple[Path, np.ndarray]
"""The file, and what llama.cpp says to TOKENS after BEFORE."""


@pytest.fixture(scope="module")
def case(arch_peer: ArchPeer) -> Case:
    path = all_files(arch_peer)["llama4-far"]
    script = Script(n_ctx=CHUNK + 256, n_ubatch=512, flash=True)
    return path, arch_peer.rows(path, script.decode(BEFORE, outputs=False).decode(TOKENS, len(BEFORE)))


def difference(case: Case, change: Callable[[Any], None]) -> float:
    path, theirs = case
    model = Model.load(path)
    try:
        for block in model.modules.blk:
            change(block.attn)
        context = Context(model, n_ctx=CHUNK + 256, n_ubatch=512)
        try:
            context.decode(BEFORE, logits="none")
            return nmse(theirs, context.decode(TOKENS, logits="all"))
        finally:
            context.close()
    finally:
        model.close()


def as_it_is(attn: Any) -> None:
    pass


def without_temperature(attn: Any) -> None:
    attn.temperature = None


def sliding(attn: Any) -> None:
    attn.__class__ = Attention


def one_less(attn: Any) -> None:
    attn.window = attn.window and attn.window - 1


def test_says_what_the_peer_says(case: Case) -> None:
    assert difference(case, as_it_is) < LIMIT


@pytest.mark.parametrize("change", [without_temperature, sliding, one_less])
def test_what_is_wrong_there_is_caught(case: Case, change: Callable[[Any], None]) -> None:
    assert difference(case, change) > 2 * LIMIT
