"""Models that make embeddings, against llama.cpp of protocol 8.0.0: every pooling, texts alone and several in a batch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_files import DENOISERS, LIMITS, NOT_THERE, known
from arch_files import NAMES as ALL
from edit_gguf import edit
from peer_archs import ArchPeer, Script, nmse
from tiny_encoders import KEYS, N_CTX, N_VOCAB, NAMES, architecture, ensure_encoders

from pyggml import ops
from pyggml.errors import ComputeError, ContextError, ModelError, UnsupportedError
from pyggml.memory.window import Window
from pyggml.model import decision, encoder, graph, per_layer, pooling, relative_attention, uncached
from pyggml.model.arch import jina_bert_v2, modern_bert, nomic_bert_moe
from pyggml.model.attention import Attention
from pyggml.model.model import Model
from pyggml.model.pooling import POOLINGS
from pyggml.model.rope import Rope
from pyggml.runtime.context import Context
from pyggml.runtime.embedder import Embedder, normalised

RNG = np.random.default_rng(3)
TEXTS = [[int(t) for t in RNG.integers(0, N_VOCAB, n)] for n in (40, 7, 1, 25)]
"""More tokens than the files' windows show."""
LIMIT = 5e-7
"""As of other architectures. Fused attention there reads queries in F16, and GELU (tanh) is a table of F16."""
EXACT, EXACT_LIMIT = (
    ("nomic-bert", "modern-bert", "neo-bert", "eurobert", "llama-embed", "llama-embed-causal", "t5encoder"),
    1e-10,
)
"""Those without either, where attention is not fused."""


@pytest.fixture(scope="session")
def files() -> Mapping[str, Path]:
    return ensure_encoders()


def theirs(arch_peer: ArchPeer, path: Path, kind: str, flash: bool, texts: list[list[int]] = TEXTS) -> np.ndarray:
    script = Script(
        n_ctx=512, n_ubatch=512, n_seq_max=4, unified=True, flash=flash, embeddings=True, pooling=POOLINGS.index(kind)
    )
    script.batch([(token, i, seq, True) for seq, text in enumerate(texts) for i, token in enumerate(text)])
    for seq in range(len(texts) if kind != "none" else 0):
        script.do("pooled", seq)
    return arch_peer.rows(path, script)


def ours(model: Model, kind: str | None, texts: list[list[int]], **options: Any) -> np.ndarray:
    embedder = Embedder(model, pooling=kind, **options)
    try:
        return np.concatenate([np.atleast_2d(one) for one in embedder.encode(texts)])
    finally:
        embedder.close()


def limit(name: str, flash: bool) -> float:
    return LIMIT if flash or name not in EXACT else EXACT_LIMIT


def kinds(model: Model) -> list[str]:
    return [kind for kind in POOLINGS if kind != "rank" or model.modules.head.ranks]


@pytest.mark.parametrize("flash", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", NAMES)
def test_says_what_the_peer_says(name: str, flash: bool, arch_peer: ArchPeer, files: Mapping[str, Path]) -> None:
    model = Model.load(files[name])
    try:
        assert architecture(name) == model.config.architecture
        for kind in kinds(model):
            expected = theirs(arch_peer, files[name], kind, flash)
            assert nmse(expected, ours(model, kind, TEXTS, flash_attn=flash)) < limit(name, flash), kind
            alone = np.concatenate([ours(model, kind, [text], flash_attn=flash) for text in TEXTS])
            assert nmse(expected, alone) < limit(name, flash), f"{kind}, each text alone"
    finally:
        model.close()


@pytest.mark.parametrize("name", ["bert", "modern-bert", "qwen3"])
def test_micro_batches_hold_whole_texts(name: str, files: Mapping[str, Path]) -> None:
    """In micro-batches of 40 tokens the texts are computed in three, and give what they give in one."""
    model = Model.load(files[name])
    try:
        for kind in kinds(model):
            assert nmse(ours(model, kind, TEXTS), ours(model, kind, TEXTS, n_ubatch=40)) < 1e-9, kind
    finally:
        model.close()


def test_a_classifier_without_labels_has_one(arch_peer: ArchPeer) -> None:
    """The reference's own files have an empty array of labels, and a pooling that is not specified."""
    path = arch_peer.files()["qwen3-dense"]
    model = Model.load(path)
    assert nmse(theirs(arch_peer, path, "rank", True), ours(model, "rank", TEXTS)) == 0
    assert nmse(theirs(arch_peer, path, "last", True), ours(model, "last", TEXTS)) < LIMIT
    model.close()


def test_pooling_and_direction_are_the_files(files: Mapping[str, Path]) -> None:
    for name in NAMES:
        model = Model.load(files[name])
        embedder = Embedder(model)
        assert embedder.pooling == POOLINGS[KEYS[name].get("pooling_type", 0)]
        assert embedder.causal == (name in ("llama-embed-causal", "qwen3"))
        embedder.close(), model.close()


def test_a_model_that_generates_may_see_all_tokens(
    arch_peer: ArchPeer, files: Mapping[str, Path], tmp_path: Path
) -> None:
    """`causal` takes the place of what the file says."""
    path = edit(files["qwen3"], tmp_path / "q.gguf", metadata={"qwen3.attention.causal": False})
    given, said = Model.load(files["qwen3"]), Model.load(path)
    expected = theirs(arch_peer, path, "mean", True)
    assert nmse(expected, ours(said, "mean", TEXTS)) < LIMIT
    assert nmse(expected, ours(given, "mean", TEXTS, causal=False)) < LIMIT
    assert nmse(expected, ours(given, "mean", TEXTS)) > 1e-3
    given.close(), said.close()


# Mutants: each shows in the comparison


def _all_seen(ub: Any, causal: bool, window: Window | None, distances: bool) -> np.ndarray:
    return MASK(type(ub)(ub.tokens, ub.pos, np.zeros_like(ub.seq), ub.outputs), causal, window, distances)


MASK, MEANS, PLACES = uncached.mask_of, pooling._means, pooling._places
BUCKETS = relative_attention.buckets
Patch = Callable[[pytest.MonkeyPatch], None]


def patch(*what: Any) -> Patch:
    return lambda m: m.setattr(*what)


def off_by_one(m: pytest.MonkeyPatch) -> None:
    first = Window.first
    m.setattr(Window, "first", lambda self, pos: first(self, pos) + 1)


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "other sequences are seen": ("bert", "mean", patch(graph, "mask_of", _all_seen)),
    "tokens before alone are seen": ("bert", "cls", patch(graph, "mask_of", lambda ub, c, *a: MASK(ub, True, *a))),
    "the window's begin": ("modern-bert", "none", off_by_one),
    "no window": ("gemma-embedding", "none", patch(graph, "mask_of", lambda ub, c, w, d: MASK(ub, c, None, d))),
    "no distances": ("jina-bert-v2", "none", patch(graph, "mask_of", lambda ub, c, w, d: MASK(ub, c, w, False))),
    "the last token": ("bert", "cls", patch(pooling, "_places", lambda n, last: PLACES(n, last=not last))),
    "the first token": ("qwen3", "rank", patch(pooling, "_places", lambda n, last: PLACES(n, last=False))),
    "means of all tokens": ("bert", "mean", patch(pooling, "_means", lambda n: lambda ub, _: np.full((n, ub.n), 1 / ub.n, "f4"))),
    "no kinds of tokens": ("nomic-bert", "mean", patch(encoder.TokenTypes, "__call__", lambda self, x: x)),
    "no positions": ("bert", "mean", patch(encoder.PositionEmbedding, "__call__", lambda self, g: ops.scale(self_rows(self, g), 0.0))),
    "no rotation": ("nomic-bert", "none", patch(Rope, "__call__", lambda self, g, x: x)),
    "one norm of attention": ("jina-bert-v2", "mean", patch(jina_bert_v2, "PostNormBlock", None)),
    "tanh for erf": ("modern-bert", "none", patch(modern_bert, "KINDS", {"None": ops.GluOp.GEGLU})),
    "another activation": ("bert", "rank", patch(pooling, "ACTIVATIONS", dict.fromkeys(("gelu", "silu", "tanh"), ops.UnaryOp.SILU))),
    "mean for the first token": ("bert", "rank", patch(pooling.Head, "_for_ranks", lambda self, g: "mean")),
    "no dense layers": ("gemma-embedding", "mean", patch(pooling.Head, "_there", lambda self, name: None)),
    "no embeddings of layers": ("gemma-embedding2", "mean", patch(per_layer.PerLayerInput, "__call__", lambda self, g, x: ops.scale(x, 0.0))),
    "no bias by distance": ("t5encoder", "none", patch(relative_attention, "buckets", lambda away, n: np.zeros(away.shape, np.int32))),
    "both sides are one": ("t5encoder", "none", patch(relative_attention, "buckets", lambda away, n: BUCKETS(-np.abs(away), n))),
    "the sides are exchanged": ("t5encoder-gated", "none", patch(relative_attention, "buckets", lambda away, n: BUCKETS(-away, n))),
    "buckets end sooner": ("t5encoder", "none", patch(relative_attention, "FARTHEST", 64)),
    "the first layer's bias for all": ("t5encoder-gated", "none", lambda m: m.setattr(relative_attention.RelativeBias, "__call__", _first_bias)),
    "gelu without a gate": ("t5encoder", "none", patch(relative_attention, "relu", lambda x: ops.unary(x, ops.UnaryOp.GELU))),
    "one kind of question": ("modern-bert-deciding", "none", patch(decision.QuestionTypes, "__call__", lambda self, x, kind: QUESTION(self, x, 0))),
    "gelu in a head": ("modern-bert-deciding", "none", patch(decision, "relu", lambda x: ops.unary(x, ops.UnaryOp.GELU))),
    "a window in a head": ("modern-bert-deciding", "none", patch(decision, "Attention", lambda hp, il, rope: Attention(hp, il, rope=rope, window=16, symmetric=True))),
    "no norm before a head": ("modern-bert-deciding", "none", patch(encoder.Encoder, "normed", lambda self, g, x: x)),
    "silu in experts": ("nomic-bert-moe", "mean", patch(nomic_bert_moe, "gelu", lambda x: ops.unary(x, ops.UnaryOp.SILU))),
}  # fmt: skip


def self_rows(self: Any, g: Any) -> Any:
    return ops.get_rows(self.weight.value, g.positions)


QUESTION = decision.QuestionTypes.__call__
BIAS_OF = relative_attention.RelativeBias.__call__


def _first_bias(self: Any, g: Any) -> Any:
    return g.handed_on[self._title] if self.il else BIAS_OF(self, g)


def _once_normed(m: pytest.MonkeyPatch) -> None:
    init = encoder.PostNormBlock.__call__

    def call(self: Any, g: Any, x: Any) -> Any:
        self.attn_norm_2 = None
        return init(self, g, x)

    m.setattr(encoder.PostNormBlock, "__call__", call)


MUTANTS["one norm of attention"] = ("jina-bert-v2", "mean", _once_normed)


@pytest.mark.parametrize("what", MUTANTS)
def test_mutants(what: str, arch_peer: ArchPeer, files: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, kind, wrong = MUTANTS[what]
    wrong(monkeypatch)
    model = Model.load(files[name])
    try:
        found = nmse(theirs(arch_peer, files[name], kind, False), ours(model, kind, TEXTS, flash_attn=False))
        assert found > 2 * limit(name, False)
    finally:
        model.close()


# Files and requests that are wrong


def test_what_is_not_possible_is_said(files: Mapping[str, Path], tmp_path: Path) -> None:
    model = Model.load(files["bert"])
    with pytest.raises(ContextError, match=r"a bert model makes embeddings .pyggml-embedding., it cannot go on"):
        Context(model)
    for text, error, message in (
        ([], ContextError, "text 1 has no tokens"),
        ([1] * (N_CTX + 1), ContextError, f"text 1 has {N_CTX + 1} tokens, the model knows {N_CTX} positions"),
        ([1] * 600, ContextError, "at most 512 are computed at once"),
        ([N_VOCAB], ComputeError, "outside the vocabulary"),
    ):
        embedder = Embedder(model)
        with pytest.raises(error, match=message):
            embedder.encode([[1], text])
        assert embedder.encode([]) == []
        embedder.close()
    with pytest.raises(ContextError, match="known are none, mean, cls, last, rank"):
        Embedder(model, pooling="most")
    model.close()
    model = Model.load(files["eurobert"])
    with pytest.raises(ContextError, match="needs a classifier"):
        Embedder(model, pooling="rank")
    model.close()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"bert.pooling_type": 9}, "bert.pooling_type is 9, known are 0 to 4"),
        ("bert", {"tokenizer.ggml.token_type_count": 0}, "token_type_count is missing"),
        (
            "bert",
            {"bert.context_length": 64},
            r"tensor position_embd.weight is \[64, 128, 1, 1\], must be \[64, 64, 1, 1\]",
        ),
        (
            "gemma-embedding",
            {"gemma-embedding.dense_2_feat_out": 79},
            r"dense_2.weight is \[64, 80, 1, 1\], must be \[64, 79, 1, 1\]",
        ),
    ],
)
def test_bad_files_are_named(
    name: str, change: dict[str, Any], message: str, files: Mapping[str, Path], tmp_path: Path
) -> None:
    path = edit(files[name], tmp_path / "bad.gguf", metadata=change)
    with pytest.raises(ModelError, match=message) as e:
        Model.load(path)
    assert "\n" not in str(e.value)


def test_a_missing_classifier_and_missing_kinds(arch_peer: ArchPeer, files: Mapping[str, Path], tmp_path: Path) -> None:
    """What files may lack."""
    path = edit(files["bert"], tmp_path / "b.gguf", leave_out=lambda n: n.startswith("cls") or "token_types" in n)
    model = Model.load(path)
    assert kinds(model) == ["none", "mean", "cls", "last"]
    assert nmse(theirs(arch_peer, path, "mean", True), ours(model, "mean", TEXTS)) < LIMIT
    model.close()


def test_normalised() -> None:
    x = np.array([3.0, -4.0, 0.0], np.float32)
    assert normalised(x, -1) is x
    assert np.allclose(normalised(x), [0.6, -0.8, 0])
    assert np.allclose(normalised(x, 0), [24570, -32760, 0])
    assert np.allclose(normalised(x, 1), [3 / 7, -4 / 7, 0])
    assert not normalised(np.zeros(3, np.float32)).any()


def test_states_only_know_what_came_before(arch_peer: ArchPeer) -> None:
    model = Model.load(arch_peer.files()["mamba-dense"])
    with pytest.raises(
        UnsupportedError, match="attention to tokens behind: not in a mamba model: its layers have states"
    ):
        Embedder(model, causal=False)
    model.close()


def test_positions_are_scaled_for_a_context(arch_peer: ArchPeer) -> None:
    """Where the file has short and long factors, the context's size says which count."""
    model = Model.load(arch_peer.files()["phi3-dense"])
    assert nmse(ours(model, "last", TEXTS, n_ctx=512), ours(model, "last", TEXTS, n_ctx=16)) > 1e-4
    model.close()


def test_texts_leave_nothing_behind(arch_peer: ArchPeer) -> None:
    """Models that need a memory compute text after text: none sees another."""
    for name in ("lfm2-dense", "deepseek2-moe", "qwen35-dense"):
        model = Model.load(arch_peer.files()[name])
        embedder = Embedder(model, pooling="mean")
        first, *_, again = embedder.encode([TEXTS[0], TEXTS[1], TEXTS[0]])
        assert np.array_equal(first, again) and np.array_equal(first, embedder.encode(TEXTS[:1])[0])
        embedder.close(), model.close()


PEER_ENDS = ("deepseek4-moe", "qwen4exp-moe")
"""Of these llama.cpp reads as many embeddings as there are streams, where there is one, and aborts."""


@pytest.mark.parametrize(
    "name", [name for name in ALL if known(name) and name not in (*NOT_THERE, *DENOISERS, *PEER_ENDS)]
)
def test_models_that_generate(name: str, arch_peer: ArchPeer) -> None:
    """Each architecture's mean and last token, in one batch."""
    path = arch_peer.files()[name]
    model = Model.load(path)
    try:
        for kind in ("mean", "last"):
            expected = theirs(arch_peer, path, kind, True)
            assert nmse(expected, ours(model, kind, TEXTS, n_ctx=512)) < LIMITS.get(name, LIMIT), kind
    finally:
        model.close()


def test_buckets_of_distances() -> None:
    """As llama_relative_position_bucket of llama-graph.cpp counts them, one by one."""

    def bucket(away: int, n: int) -> int:
        n //= 2
        exact, side, far = n // 2, n * (away > 0), abs(away)
        if far < exact:
            return side + far
        ratio = np.log(np.float32(far / exact)) * np.float32(n - exact)
        return side + min(int(np.floor(np.float32(exact + float(ratio) / float(np.log(128 / exact))))), n - 1)

    away = np.arange(-700, 701)
    for n in (4, 8, 12, 32, 64):
        found = relative_attention.buckets(away, n)
        assert found.tolist() == [bucket(int(one), n) for one in away]
        assert found.min() == 0 and found.max() == n - 1


def test_a_head_that_decides_and_a_file_that_is_none(files: Mapping[str, Path], tmp_path: Path) -> None:
    path = files["modern-bert-deciding"]
    model = Model.load(path)
    assert ours(model, None, TEXTS).shape == (sum(map(len, TEXTS)), decision.QUESTIONS)
    with pytest.raises(ContextError, match="classifier"):
        Embedder(model, pooling="rank")
    model.close()
    for key, value, said in (
        ("modern-bert.decision.block_count", 4, "of 4 layers one at least is the encoder's"),
        ("tokenizer.ggml.token_type_count", 2, "has 3 kinds of questions"),
    ):
        with pytest.raises(ModelError, match=said):
            Model.load(edit(path, tmp_path / "wrong.gguf", metadata={key: np.uint32(value)}))
