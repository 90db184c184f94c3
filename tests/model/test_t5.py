"""T5 beside llama.cpp: a text is encoded, then the decoder's tokens attend to it; alone, beside others, and saved."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_gguf import edit
from peer_archs import ArchPeer, Script, nmse
from tiny_t5 import N_LAYER, N_VOCAB, NAMES, PAD, ensure_t5

from pyggml import ops
from pyggml.errors import ContextError, ModelError, UnsupportedError
from pyggml.memory.encoded import Encoded
from pyggml.model import relative_attention
from pyggml.model.arch import t5
from pyggml.model.model import Model
from pyggml.runtime import state
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context
from pyggml.runtime.embedder import Embedder
from pyggml.runtime.warm_up import warm_up

LIMIT = 5e-7
ROUNDED = 5e-6
"""Where one of both has sums or keys in F16 that the other has not."""
RNG = np.random.default_rng(3)
TEXTS = [[int(t) for t in RNG.integers(0, N_VOCAB, n)] for n in (40, 7, 170)]
"""The last one is longer than the farthest bucket."""
TOKENS = [PAD, *(int(t) for t in RNG.integers(0, N_VOCAB, 149))]


@pytest.fixture(scope="module")
def files() -> Mapping[str, Path]:
    return ensure_t5()


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, files: Mapping[str, Path]) -> Iterator[Model]:
    model = Model.load(files[name])
    yield model
    model.close()


def texts_of(*texts: list[int]) -> list[tuple[int, int, int]]:
    return [(token, i, seq) for seq, text in enumerate(texts) for i, token in enumerate(text)]


def pieces(context: Context) -> np.ndarray:
    parts = [TOKENS[:5], TOKENS[5:144], *([t] for t in TOKENS[144:])]
    return np.concatenate([context.decode(part, logits="all") for part in parts])


@pytest.mark.parametrize("flash", [True, False], ids=["fused", "unfused"])
def test_says_what_the_peer_says(model: Model, arch_peer: ArchPeer, flash: bool) -> None:
    path = Path(model.file.paths[0])
    context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=flash)
    try:
        for text in TEXTS[::2]:
            theirs = arch_peer.rows(path, Script(flash=flash).encode(texts_of(text)).decode(TOKENS))
            context.encode(text)
            assert nmse(theirs, context.decode(TOKENS, logits="all")) < LIMIT
            context.truncate(0)  # another answer to the same text
            assert nmse(theirs, pieces(context)) < LIMIT
    finally:
        context.close()


@pytest.mark.parametrize("unified", [False, True])
def test_three_texts_at_once(model: Model, arch_peer: ArchPeer, unified: bool) -> None:
    """Their first tokens in one batch, then one each; each as alone, and what the peer says, whose sequences share cells."""
    starts = [TOKENS[:3], TOKENS[3:4], TOKENS[4:60]]
    rows = [(token, i, seq, True) for seq, part in enumerate(starts) for i, token in enumerate(part)]
    nexts = [(TOKENS[60 + seq], len(part), seq, True) for seq, part in enumerate(starts)]
    script = Script(n_seq_max=3, unified=True).encode(texts_of(*TEXTS)).batch(rows).batch(nexts)
    theirs = arch_peer.rows(Path(model.file.paths[0]), script)
    for flash in (True, False):
        context = Context(model, n_ctx=768, n_ubatch=256, n_seq_max=3, kv_unified=unified, flash_attn=flash)
        for seq, text in enumerate(TEXTS):
            context.encode(text, seq)
        parts = [Batch.of(part, 0, seq, "all") for seq, part in enumerate(starts)]
        ours = [context.decode(Batch.join(parts))]
        ours.append(context.decode(Batch.of_each([t for t, *_ in nexts], [pos for _, pos, *_ in nexts], [0, 1, 2])))
        assert nmse(theirs, np.concatenate(ours)) < (ROUNDED if flash else LIMIT)
        context.encode(TEXTS[2], 0)  # what the sequence has answered before is forgotten, the others' answers are not
        assert [context.memory.end(seq) for seq in range(3)] == [0, 2, 57]
        assert nmse(theirs[4:60], context.decode(Batch.of(starts[2], 0, 0, "all"))) < (ROUNDED if flash else LIMIT)
        context.close()


def test_a_sequence_is_copied_and_saved(model: Model) -> None:
    """With the text that it has read: in another sequence, in the bytes of a memory, in a saved state."""
    for flash in (True, False):
        context = Context(model, n_ctx=512, n_ubatch=256, n_seq_max=2, flash_attn=flash)
        context.encode(TEXTS[0])
        context.decode(TOKENS[:9])
        dump, saved = context.memory.dump(0), b"".join(state.parts(context, TOKENS[:9]))
        wanted = context.decode(TOKENS[9:10])
        context.truncate(9)
        context.memory.copy(0, 1)
        np.testing.assert_array_equal(context.decode(Batch.of(TOKENS[9:10], 9, 1)), wanted)
        context.encode(TEXTS[1])
        context.memory.load(0, dump)
        np.testing.assert_array_equal(context.decode(TOKENS[9:10]), wanted)
        context.clear()
        with pytest.raises(ContextError, match="none has been encoded"):
            context.decode(TOKENS[:1])
        assert state.parse(saved, "it").restore(context, 9) == 9
        np.testing.assert_array_equal(context.decode(TOKENS[9:10]), wanted)
        context.close()


def test_a_context_is_made_ready(model: Model) -> None:
    context = Context(model, n_ctx=512, n_ubatch=64, n_seq_max=2)
    warm_up(context)
    assert context.text == () and context.n_past == 0
    context.close()


def test_a_full_context_goes_on(model: Model, arch_peer: ArchPeer) -> None:
    """Without the oldest tokens of the answer; the text stays."""
    script = Script(flash=True).encode(texts_of(TEXTS[0])).decode(TOKENS[:20], outputs=False)
    script.do("remove", 0, 4, 12).do("add", 0, 12, 20, -8).decode(TOKENS[20:24], 12)
    context = Context(model, n_ctx=256, n_ubatch=256)
    context.encode(TEXTS[0])
    context.decode(TOKENS[:20])
    context.shift(4, 8)
    found = context.decode(TOKENS[20:24], logits="all")
    assert nmse(arch_peer.rows(Path(model.file.paths[0]), script), found) < ROUNDED
    context.close()


def test_what_is_not_possible_is_said(files: Mapping[str, Path], arch_peer: ArchPeer, tmp_path: Path) -> None:
    model = Model.load(files["t5"])
    context = Context(model, n_ctx=256, n_ubatch=64)
    with pytest.raises(ContextError, match="a t5 model answers a text, and none has been encoded"):
        context.decode([PAD])
    with pytest.raises(ContextError, match="a text of 65 tokens: an encoder reads 1 to 64 at once"):
        context.encode([1] * 65)
    with pytest.raises(ContextError, match="sequence 1: there are 1"):
        context.encode([1], 1)
    with pytest.raises(UnsupportedError, match="which has an encoder and a decoder"):
        Embedder(model)
    context.close(), model.close()
    other = Model.load(arch_peer.files()["llama-dense"])
    context = Context(other, n_ctx=256)
    with pytest.raises(ContextError, match="a llama model has no encoder"):
        context.encode([1])
    context.close(), other.close()
    with pytest.raises(ModelError, match="decoder_block_count is 5, at most block_count"):
        Model.load(edit(files["t5"], tmp_path / "more.gguf", metadata={"t5.decoder_block_count": N_LAYER + 1}))


BEHIND, BIAS_OF, CROSS = (
    relative_attention.buckets_behind,
    relative_attention.RelativeBias.__call__,
    t5.CrossAttention.__call__,
)
MASK = Encoded.mask


def _first_bias(self: Any, g: Any) -> Any:
    return g.handed_on[self._title] if self.il else BIAS_OF(self, g)


def _text_ends_sooner(self: Encoded, placement: Any) -> np.ndarray:
    mask = MASK(self, placement)
    mask[:, len(self.texts[0]) - 1] = -np.inf
    return mask


MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "no bias by distance": ("t5", lambda m: m.setattr(relative_attention, "buckets_behind", lambda away, n: 0 * BEHIND(away, n))),
    "buckets of both sides": ("t5", lambda m: m.setattr(relative_attention, "buckets_behind", relative_attention.buckets)),
    "distances are off by one": ("t5-gated", lambda m: m.setattr(relative_attention, "buckets_behind", lambda away, n: BEHIND(away - 1, n))),
    "the first layer's bias for all": ("t5-gated", lambda m: m.setattr(relative_attention.RelativeBias, "__call__", _first_bias)),
    "buckets end sooner": ("t5", lambda m: m.setattr(relative_attention, "FARTHEST", 64)),
    "the text is not read": ("t5", lambda m: m.setattr(t5.CrossAttention, "__call__", lambda self, g, x: ops.scale(CROSS(self, g, x), 0.0))),
    "the text's last token is not read": ("t5", lambda m: m.setattr(Encoded, "mask", _text_ends_sooner)),
    "what only fills up is read": ("t5", lambda m: m.setattr(Encoded, "mask", lambda self, placement: np.zeros_like(MASK(self, placement)))),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTANTS)
def test_mutants(what: str, arch_peer: ArchPeer, files: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong = MUTANTS[what]
    theirs = arch_peer.rows(files[name], Script(flash=True).encode(texts_of(TEXTS[0])).decode(TOKENS))
    wrong(monkeypatch)
    model = Model.load(files[name])
    context = Context(model, n_ctx=256, n_ubatch=256)
    try:
        context.encode(TEXTS[0])
        assert nmse(theirs, context.decode(TOKENS, logits="all")) > 2 * LIMIT
    finally:
        context.close(), model.close()
