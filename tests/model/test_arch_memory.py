"""What every architecture remembers, beside llama.cpp and beside itself: over the end of a window's cells, copied, in cells that
sequences share, saved and restored, back at a checkpoint, shifted."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_files import DENOISERS, LIMIT, LIMITS, NAMES, NOT_THERE, known
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse

from pyggml.errors import ContextError
from pyggml.memory.kv import KVCache
from pyggml.model.model import Model
from pyggml.runtime import state
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context
from pyggml.runtime.slot import Slot

TOKENS = [int(t) for t in np.random.default_rng(4).integers(0, 128, 400)]
LONG: dict[str, Any] = {"n_ctx": 512, "n_ubatch": 32}
"""A window of 32 tokens has 256 cells then, here and there. The peer attends without flash attention, which in its F16 sums
is 1e-6 away from that after so many tokens; ours are 1e-12 apart."""

SHIFTED = 1e-4
"""Of what follows a shift: keys are turned as they are kept, in F16, and rounded again; another expert may be chosen then."""

TURNED_THERE = (
    "baichuan", "cohere2", "cohere2moe", "exaone-moe", "maple", "muse-glimmer", "smallthinker", "starcoder",
)  # fmt: skip
"""llama.cpp turns the keys of all layers (llama_kv_cache::build_graph_shift), those too that know no position."""


FILES = [
    *(name for name in NAMES if known(name) and name not in (*NOT_THERE, *DENOISERS)), "gemma3-bases", "gemma4-small",
]  # fmt: skip
"""Also one whose windows turn keys by a base of their own, and one whose layers read the cells of others."""


@pytest.fixture(params=FILES)
def path(request: pytest.FixtureRequest, arch_peer: ArchPeer) -> Path:
    return all_files(arch_peer)[request.param]


def windows(model: Model) -> bool:
    return any(need.window is not None for need in model.modules.needs())


def has_states(model: Model) -> bool:
    return any(need.states is not None for need in model.modules.needs())


def length(model: Model) -> int:
    """Tokens of a long text; there may be embeddings of 256 positions alone."""
    return 400 if "position_embd.weight" not in model.file.tensors else 250


def test_over_the_end_of_the_cells(arch_peer: ArchPeer, path: Path) -> None:
    """A long text in small micro-batches; windows begin to give up what no token sees."""
    with contextlib.closing(Model.load(path)) as model, contextlib.closing(Context(model, **LONG)) as context:
        cells = {p.window: p.n_cells for p in context.memory.parts if isinstance(p, KVCache)}
        assert {n for window, n in cells.items() if window is not None and window.n <= 256} <= {256}
        forgets = any(window is not None and window.n <= 256 for window in cells)
        assert context.memory.rewinds == (not has_states(model) and not forgets)
        n = length(model)
        got = context.decode(TOKENS[:n], logits="all")[-40:]
    script = Script(**LONG).decode(TOKENS[: n - 40], outputs=False).decode(TOKENS[n - 40 : n], n - 40)
    assert nmse(arch_peer.rows(path, script), got) < LIMITS.get(path.stem, LIMIT)


def test_shifted(arch_peer: ArchPeer, path: Path) -> None:
    """Half of a context forgotten, and on: as the peer, where it allows that."""
    with contextlib.closing(Model.load(path)) as model:
        for full in (True, False) if windows(model) else (False,):
            with contextlib.closing(Context(model, n_ctx=256, n_ubatch=64, swa_full=full)) as context:
                context.decode(TOKENS[:200])
                if context.memory.why_no_shift:
                    with pytest.raises(
                        ContextError, match=r"a recurrent state holds all tokens|a token has 4 positions|blocks of"
                    ):
                        context.shift(4, 96)
                    assert context.n_past == 200
                    return
                context.shift(4, 96)
                got = context.decode(TOKENS[200:240], logits="all")
            if path.stem.rsplit("-", 1)[0] in TURNED_THERE:
                continue
            script = Script(n_ctx=256, n_ubatch=64, swa_full=True).decode(TOKENS[:200], outputs=False)
            script.do("remove", 0, 4, 100).do("add", 0, 100, 200, -96)
            assert nmse(arch_peer.rows(path, script.decode(TOKENS[200:240], 104)), got) < SHIFTED


def test_saved_and_restored(path: Path) -> None:
    """What follows a state is what followed the tokens, to the bit without windows; also after a checkpoint in it, and one in
    memory."""
    with contextlib.closing(Model.load(path)) as model, contextlib.ExitStack() as stack:
        context, fresh = (stack.enter_context(contextlib.closing(Context(model, **LONG))) for _ in range(2))
        slot = Slot(context, memory=context.memory)
        n = length(model) - 50
        slot.prefill(TOKENS[:n])
        data = b"".join(state.parts(context, TOKENS[:n], checkpoints=slot.checkpoints.kept))
        checkpoint = context.memory.checkpoint(0)
        assert (checkpoint is None) == context.memory.rewinds
        text = TOKENS[n : n + 40]
        expected = context.decode(text, logits="all")
        saved = state.parse(data, "bytes")
        assert saved.restore(fresh, n) == n
        restored = fresh.decode(text, logits="all")
        assert context.memory.restore(0, checkpoint, n)
        again = context.decode(text, logits="all")
        if windows(model):  # what is left of a window lies in other cells, and is added up in another order
            assert nmse(expected, restored) < 1e-11 and nmse(expected, again) < 1e-11
        else:
            np.testing.assert_array_equal(restored, expected)
            np.testing.assert_array_equal(again, expected)
        reached = saved.restore(fresh, n - 1)
        assert reached == (n - 1 if context.memory.rewinds else n - 4)
        fresh.decode(TOKENS[reached:n], logits="none")
        assert nmse(expected, fresh.decode(text, logits="all")) < LIMIT


def test_copied_and_in_cells_that_sequences_share(path: Path) -> None:
    """Three sequences that begin alike, then join and leave; each as alone. Where all is kept of all tokens, which are most
    models, that is a matter of tests/memory/, and this is shorter."""
    with contextlib.closing(Model.load(path)) as model, contextlib.ExitStack() as stack:
        alone = stack.enter_context(contextlib.closing(Context(model, **LONG)))
        plain = alone.memory.rewinds
        for unified in (True,) if plain else (False, True):
            context = stack.enter_context(
                contextlib.closing(Context(model, n_ctx=1536, n_ubatch=32, n_seq_max=3, kv_unified=unified))
            )
            context.decode(Batch.of(TOKENS[:150], 0, 0, "none"))
            for seq in (1, 2):
                context.memory.copy(0, seq)
            texts = [list(TOKENS[:150]) for _ in range(3)]
            for turn in range(1 if plain else 3):
                if turn == 1:  # one leaves, and another text comes
                    context.memory.remove(1)
                    texts[1] = []
                more = [TOKENS[200 + 50 * seq + 20 * turn :][: 7 + 9 * seq] for seq in range(3)]
                batch = Batch.join(
                    [Batch.of(m, len(t), seq) for seq, (t, m) in enumerate(zip(texts, more, strict=True))]
                )
                rows = context.decode(batch)
                for text, tokens, row in zip(texts, more, rows, strict=True):
                    text += tokens
                    alone.clear()
                    assert nmse(alone.decode(text)[-1], row) < LIMIT, (unified, turn)
