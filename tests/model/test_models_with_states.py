"""Models with states as they are run: batches of uneven sequences, small micro-batches, saved states, checkpoints, prompts that
begin alike."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_files import LIMIT, TOKENS
from arch_variants import all_files
from fake_context import Greedy
from peer_archs import ArchPeer, nmse

from pyggml.model.model import Model
from pyggml.runtime import state
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Sequence
from pyggml.runtime.slot import Slot

NAMES = ("qwen35-heads", "mamba2-heads", "falcon-h1-dense", "lfm2-dense", "kimi-linear-heads", "rwkv7-gated")
"""Keys and states in turns, states alone, both in one layer, a convolution alone, latent rows, three states a layer."""


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, arch_peer: ArchPeer) -> Iterator[Model]:
    model = Model.load(all_files(arch_peer)[request.param])
    yield model
    model.close()


@pytest.fixture(scope="module")
def expected(model: Model) -> np.ndarray:
    """(70, n_vocab): logits after each token."""
    context = Context(model, n_ctx=256)
    rows = context.decode(TOKENS, logits="all")
    context.close()
    return rows


@pytest.mark.parametrize(
    "options", [{}, {"kv_unified": True}, {"n_ubatch": 5}, {"kv_unified": True, "n_ubatch": 3}], ids=str
)
def test_uneven_sequences(model: Model, expected: np.ndarray, options: dict[str, Any]) -> None:
    """In each batch some of four sequences, in any order, with different numbers of tokens; single ones in between."""
    context, rng, ends = Context(model, n_ctx=4 * 256, n_seq_max=4, **options), np.random.default_rng(2), [0] * 4
    while min(ends) < len(TOKENS):
        most = int(rng.choice([1, 4, 20]))
        order = [s for s in rng.permutation(4).tolist() if ends[s] < len(TOKENS) and rng.random() < 0.8]
        sizes = [min(len(TOKENS) - ends[s], int(rng.integers(1, most + 1))) for s in order]
        if not order:
            continue
        batches = [
            Batch.of(TOKENS[ends[s] : ends[s] + n], ends[s], s, "all") for s, n in zip(order, sizes, strict=True)
        ]
        found = context.decode(Batch.join(batches))
        wanted = np.concatenate([expected[ends[s] : ends[s] + n] for s, n in zip(order, sizes, strict=True)])
        assert nmse(wanted, found) < LIMIT
        for s, n in zip(order, sizes, strict=True):
            ends[s] += n
    context.close()


def test_what_is_saved_computes_on(model: Model, expected: np.ndarray, tmp_path: Path) -> None:
    context = Context(model, n_ctx=256)
    context.decode(TOKENS[:40])
    state.save(context, TOKENS[:40], tmp_path / "state")
    following = context.decode(TOKENS[40:41])
    context.close()
    loaded = state.load(tmp_path / "state")
    for seq, n_seq_max in ((0, 1), (2, 3)):
        fresh = Context(model, n_ctx=256 * n_seq_max, n_seq_max=n_seq_max)
        assert loaded.restore(fresh, 40, seq) == 40
        found = fresh.decode(Batch.of(TOKENS[40:41], 40, seq))
        assert seq or np.array_equal(found, following)
        assert nmse(expected[40], found[0]) < LIMIT
        fresh.close()


def test_a_sequence_is_copied_with_its_states(model: Model, expected: np.ndarray) -> None:
    context = Context(model, n_ctx=2 * 256, n_seq_max=2)
    context.decode(Batch.of(TOKENS[:30], 0, 0))
    context.memory.copy(0, 1)
    context.decode(Batch.of(TOKENS[:7], 30, 0))
    found = context.decode(Batch.of(TOKENS[30:50], 30, 1, "all"))
    assert nmse(expected[30:50], found) < LIMIT
    context.close()


def test_prompts_that_begin_alike(model: Model) -> None:
    """From a checkpoint on, and the same text as from the beginning."""
    context, alone = (Context(model, n_ctx=256, n_ubatch=16) for _ in range(2))
    slot, reused = Slot(context, memory=context.memory), []
    for prompt in (TOKENS[:60], TOKENS[:58] + TOKENS[:9], TOKENS[:57] + TOKENS[20:30], TOKENS[:3] + TOKENS[40:50]):
        sequence = Sequence(prompt, Greedy(), max_tokens=5)
        list(generate(slot, sequence))
        alone.clear()
        plain = Sequence(prompt, Greedy(), max_tokens=5)
        list(generate(Slot(alone, memory=alone.memory), plain))
        assert sequence.answer == plain.answer
        reused.append(sequence.n_reused)
    assert reused[0] == 0 and reused[1] == reused[2] == 56 and reused[3] == 0
    context.close(), alone.close()
