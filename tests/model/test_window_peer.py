"""Models with windows beside llama.cpp, over the window's edge: shifted, saved and restored, from a checkpoint on, beside other
sequences in shared cells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_files import LIMIT, TOKENS, decode_in
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse
from peer_programs import Programs
from programs import Newest

from pyggml.model.model import Model
from pyggml.runtime import state
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context
from pyggml.runtime.slot import Slot

NAMES = ["gemma3-bases", "gemma4-small", "gpt-oss-moe"]
"""Windows with positions of their own; with layers that read the cells of others; with sinks."""

OPTIONS: dict[str, Any] = {"n_ctx": 256, "n_ubatch": 16}
"""Micro-batches so small that windows give up cells."""

N = 60

SHIFTED = 2e-6
"""Of the NMSE when keys have been turned again: they are rounded to F16 once more, by each side in its way."""


@pytest.fixture(scope="module")
def peer(newest: Newest) -> ArchPeer:
    return ArchPeer(Programs(newest.bin, newest.source))


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, peer: ArchPeer) -> Path:
    return all_files(peer)[request.param]


@pytest.fixture
def model(path: Path) -> Any:
    model = Model.load(path)
    yield model
    model.close()


def shifted(peer: ArchPeer, path: Path) -> np.ndarray:
    """What llama.cpp says to the last 10 tokens when tokens 3 to 19 of those before are forgotten. It shifts windows only where
    they keep all tokens."""
    script = Script(flash=True, swa_full=True).batch([(t, i, 0, False) for i, t in enumerate(TOKENS[:N])])
    script.do("remove", 0, 3, 20).do("add", 0, 20, -1, -17)
    return peer.rows(path, script.decode(TOKENS[N:], N - 17))


@pytest.mark.parametrize("swa_full", [False, True])
def test_forgets_what_llama_cpp_forgets(peer: ArchPeer, path: Path, model: Model, swa_full: bool) -> None:
    context = Context(model, swa_full=swa_full, **OPTIONS)
    context.decode(TOKENS[:N])
    context.shift(3, 17)
    found, wanted = context.decode(TOKENS[N:], logits="all"), shifted(peer, path)
    assert nmse(wanted, found) < SHIFTED
    context.clear()  # one token less forgotten is noticed
    context.decode(TOKENS[:N])
    context.shift(3, 16)
    assert nmse(wanted, context.decode(TOKENS[N:], logits="all")) > 2 * SHIFTED
    context.close()


def test_what_is_restored_goes_on_as_llama_cpp(peer: ArchPeer, path: Path, model: Model, tmp_path: Path) -> None:
    wanted = peer.rows(path, Script(flash=True).decode(TOKENS))
    context = Context(model, **OPTIONS)
    context.decode(TOKENS[:N])
    state.save(context, TOKENS[:N], tmp_path / "state")
    context.close()
    loaded = state.load(tmp_path / "state")
    for options in ({}, {"swa_full": True}, {"flash_attn": False}):
        fresh = Context(model, **OPTIONS, **options)
        assert loaded.restore(fresh, N) == N
        assert nmse(wanted[N:], fresh.decode(TOKENS[N:], logits="all")) < LIMIT, options
        fresh.close()


def test_from_a_checkpoint_on_it_goes_on_as_llama_cpp(peer: ArchPeer, path: Path, model: Model) -> None:
    wanted = peer.rows(path, Script(flash=True).decode(TOKENS))
    context = Context(model, **OPTIONS)
    slot = Slot(context, memory=context.memory)
    slot.prefill(TOKENS[:40])
    kept = context.memory.checkpoint(0)
    context.decode(TOKENS[40:])
    assert context.memory.restore(0, kept, 40) and context.n_past == 40
    assert nmse(wanted[40:], decode_in(context, [TOKENS[40:50], TOKENS[50:]])) < LIMIT
    context.close()


@pytest.mark.parametrize("unified", [False, True])
def test_three_sequences_in_cells_of_their_own_or_shared(
    peer: ArchPeer, path: Path, model: Model, unified: bool
) -> None:
    """In steps, so that windows of several sequences move on at once."""
    script = Script(n_ctx=768, n_seq_max=3, unified=unified, flash=True)
    context = Context(model, n_ctx=768, n_seq_max=3, kv_unified=unified, n_ubatch=16)
    found = []
    for start in range(0, len(TOKENS), 14):
        some = [TOKENS[start : start + 14], TOKENS[::-1][start : start + 14], TOKENS[start : start + 14][::-1]]
        script.batch([(t, start + i, seq, True) for seq, ts in enumerate(some) for i, t in enumerate(ts)])
        batches = [Batch.of(tokens, start, seq, "all") for seq, tokens in enumerate(some)]
        found.append(context.decode(Batch.join(batches)))
    assert nmse(peer.rows(path, script), np.concatenate(found)) < LIMIT
    context.close()
