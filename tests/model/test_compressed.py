"""DeepSeek V4 and GLM 5.3 beyond what all architectures are held to: experts chosen by the token, files as converters write them, a mutant of
each special part, and how blocks lie in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import arch_files
import numpy as np
import pytest
from arch_variants import all_files
from edit_gguf import edit
from peer_archs import ArchPeer, Script, nmse

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ContextError, ModelError, StateError
from pyggml.memory import blocks
from pyggml.memory.blocks import BlockLayer, Blocks
from pyggml.memory.ubatch import NOBODY, Ubatch
from pyggml.model import compressed, experts, hyper_connections, pooled_indexer
from pyggml.model.arch import deepseek4, glm5_next
from pyggml.model.layers import CausalLM
from pyggml.model.model import Model
from pyggml.model.rope import Rope
from pyggml.runtime.context import Context

LIMIT = 5e-7
TOKENS = [int(t) for t in np.random.default_rng(4).integers(0, 128, 150)]
"""More than a block of 128."""


@pytest.fixture(scope="module")
def hashed(arch_peer: ArchPeer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first two layers choose experts by the token; matrices of groups lie one below the other."""
    source, target = all_files(arch_peer)["deepseek4-chosen"], tmp_path_factory.mktemp("deepseek4") / "hashed.gguf"
    rng = np.random.default_rng(6)
    new: dict[str, np.ndarray] = {
        f"blk.{il}.ffn_gate_tid2eid.weight": np.argsort(rng.random((128, 8)))[:, :3].astype(np.int32) for il in (0, 1)
    }
    model = Model.load(source)
    for il in range(4):
        info = model.file.tensors[f"blk.{il}.attn_output_a.weight"]
        new[f"blk.{il}.attn_output_a.weight"] = info.data.view(np.float32).reshape(-1, info.ne[0]).copy()
    model.close()
    without = {f"blk.{il}.exp_probs_b.bias" for il in (0, 1)}
    return edit(source, target, leave_out=without.__contains__, replace=new, metadata={"deepseek4.hash_layer_count": 2})


@pytest.fixture(scope="module")
def theirs(arch_peer: ArchPeer, hashed: Path) -> np.ndarray:
    return arch_peer.rows(hashed, Script(flash=True).decode(TOKENS))


def ours(path: Path, **options: Any) -> np.ndarray:
    return arch_files.ours(path, TOKENS, **options)


def test_experts_by_the_token(hashed: Path, theirs: np.ndarray) -> None:
    assert nmse(theirs, ours(hashed)) < LIMIT
    assert nmse(theirs, ours(hashed, type_k=GGMLType.Q8_0)) < 1e-3


def test_bad_files_are_named(hashed: Path, tmp_path: Path) -> None:
    for key, value, said in (
        ("attention.output_group_count", 3, "output_group_count is 3, must divide the 8 heads"),
        ("hyper_connection.count", 3, "hyper_connection.count is 3, must be 4"),
        ("expert_gating_func", 2, "must say sqrt_softplus"),
        ("attention.indexer.key_length", 16, "key_length is 16, must be at least rope.dimension_count, 32"),
    ):
        with pytest.raises(ModelError, match=said):
            Model.load(hashed, metadata={f"deepseek4.{key}": value})
    ratios = {"deepseek4.attention.compress_ratios": np.array([0, 0, 4, 64], np.int32)}
    with pytest.raises(ModelError, match="must say 0, 4 or 128 for each of the 4 layers"):
        Model.load(edit(hashed, tmp_path / "wrong.gguf", metadata=ratios))


COMPLETED, MASK, ROTATE, SOURCES = Blocks.completed, Blocks.mask, Rope._rotate, compressed.BlockInputs.sources
POST, COMB, CHOOSE = ops.dsv4_hc_post, ops.dsv4_hc_comb, experts.Experts.choose


def _pos_off_by_one(self: Blocks, ub: Ubatch) -> Any:
    done = COMPLETED(self, ub)
    return done._replace(pos=done.pos + 1)


def _seen_too_early(self: Blocks, placement: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.roll(MASK(self, placement, dtype), -1, axis=0)


def _by_the_router(self: experts.Experts, g: Any, logits: Any) -> Any:
    table, self.ffn_gate_tid2eid = self.ffn_gate_tid2eid, None
    try:
        return CHOOSE(self, g, logits)
    finally:
        self.ffn_gate_tid2eid = table


Patch = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, Patch] = {
    "a row is turned by another position": lambda m: m.setattr(Blocks, "completed", _pos_off_by_one),
    "a row is seen too early": lambda m: m.setattr(Blocks, "mask", _seen_too_early),
    "all rows are read": lambda m: m.setattr(compressed.BlockChooser, "mask", lambda self, g, x, low, at, fused: at.mask(fused)),
    "there is a block before the first": lambda m: m.setattr(compressed.BlockInputs, "nothing_before", property(
        lambda self: self._input("before", GGMLType.F32, 1, fill=lambda ub, _: np.zeros(1, "f4")))),
    "the block before does not count": lambda m: m.setattr(compressed.BlockInputs, "sources", lambda self, n, before: SOURCES(self, n, 0)),
    "a token's place in its block does not count": lambda m: m.setattr(compressed.BlockInputs, "phase", property(
        lambda self: self._input("phase", GGMLType.I32, self.g.n_tokens, fill=lambda ub, _: 0 * ub.pos))),
    "results are not turned back": lambda m: m.setattr(Rope, "_rotate", lambda self, x, pos, n, f, o, name, back=False: x if back else ROTATE(self, x, pos, n, f, o, name)),
    "queries are not normed": lambda m: m.setattr(compressed.ops, "rms_norm", lambda x, eps: x if x.ne[1] == 8 else RMS(x, eps)),
    "streams are not mixed anew": lambda m: m.setattr(deepseek4.ops, "dsv4_hc_post", lambda cur, x, w, comb, name="": POST(cur, x, w, name=name)),
    "one round of sums": lambda m: m.setattr(hyper_connections.ops, "dsv4_hc_comb", lambda mixes, s, b, eps, n: COMB(mixes, s, b, eps, 1)),
    "yarn in layers without blocks": lambda m: m.setattr(deepseek4, "_rope", lambda hp, ratio: ROPE_OF(hp, 4)),
    "magnitudes grow": lambda m: m.setattr(deepseek4, "replace", lambda scaling, attn_factor: scaling),
    "experts by the router": lambda m: m.setattr(experts.Experts, "choose", _by_the_router),
}  # fmt: skip
RMS, ROPE_OF = ops.rms_norm, deepseek4._rope


@pytest.mark.parametrize("what", MUTANTS)
def test_mutants(what: str, hashed: Path, theirs: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[what](monkeypatch)
    assert nmse(theirs, ours(hashed)) > 2 * LIMIT


# GLM 5.3


@pytest.fixture(scope="module")
def shared(arch_peer: ArchPeer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third layer, which reads what the first has chosen."""
    source, target = all_files(arch_peer)["glm5-next-chosen"], tmp_path_factory.mktemp("glm5") / "shared.gguf"
    model = Model.load(source)
    new = {}
    for name, info in model.file.tensors.items():
        experts = name.startswith("blk.1.") and ("ffn_" in name or "exp_probs" in name)
        if experts or (name.startswith("blk.0.") and "indexer" not in name and ".ffn_" not in name):
            ne = info.ne[: max(i + 1 for i in range(4) if info.ne[i] > 1 or not i)]
            values = np.roll(info.data.view(np.float32), 7).reshape(ne[::-1])
            new[f"blk.2.{name.split('.', 2)[2]}"] = values
    model.close()
    each = {
        "attention.head_count_kv": np.array([1, 0, 1], np.uint32),
        "attention.indexer.types": np.array([1, 0, 0], np.uint32),
        "swiglu_clamp_exp": np.array([0.02, 0.03, 0.02], np.float32),
        "swiglu_clamp_shexp": np.array([0.03, 0.02, 0.01], np.float32),
        "attention.recurrent_layers": np.array([0, 1, 0], np.uint32),
        "leading_dense_block_count": 1,
        "block_count": 3,
    }
    return edit(source, target, replace=new, metadata={f"glm5-next.{key}": value for key, value in each.items()})


POOLED, SEEN, BOUND = pooled_indexer.PoolIndexer.mask, Blocks.mask, glm5_next.BoundedDelta.decay
GLM_MUTANTS: dict[str, Patch] = {
    "no tail": lambda m: m.setattr(pooled_indexer, "ALWAYS", -1e4),
    "all is read": lambda m: m.setattr(pooled_indexer.PoolIndexer, "mask", lambda self, g, x, low, mask: [POOLED(self, g, x, low, mask), mask][1]),
    "means of keys": lambda m: m.setattr(compressed.ops, "soft_max", lambda x, *a, **more: SOFT(ops.scale(x, 0.0)) if not a and x.ne[0] == 4 else SOFT(x, *a, **more)),
    "keys are not normed": lambda m: m.setattr(pooled_indexer.Pools, "values", lambda self, g, x: g.linear(getattr(self.owner, "indexer.attn_k"), x)),
    "one stream of four": lambda m: m.setattr(glm5_next.Model, "normed", lambda self, g, x: CausalLM.normed(self, g, ops.cont(ops.view(x, (x.ne[0], x.ne[2]), (x.nb[2],))))),
    "a pool is seen too early": lambda m: m.setattr(Blocks, "mask", _seen_too_early),
}  # fmt: skip
SOFT = ops.soft_max


def glm(path: Path) -> np.ndarray:
    model = Model.load(path)
    context = Context(model, n_ctx=256, n_ubatch=256)
    try:
        return context.decode(TOKENS, logits="all")
    finally:
        context.close(), model.close()


def test_a_layer_reads_what_another_has_chosen(arch_peer: ArchPeer, shared: Path) -> None:
    wanted = arch_peer.rows(shared, Script(flash=True).decode(TOKENS))
    assert nmse(wanted, glm(shared)) < LIMIT
    with pytest.raises(ModelError, match="layer 0 reads what none has chosen before"):
        Model.load(all_files(arch_peer)["glm5-next-chosen"], metadata={"glm5-next.attention.indexer.types": 0})
    with pytest.raises(ModelError, match="top_k is 9, must be pools of 4 tokens"):
        Model.load(shared, metadata={"glm5-next.attention.indexer.top_k": 9})


@pytest.mark.parametrize("what", GLM_MUTANTS)
def test_mutants_of_pools(what: str, arch_peer: ArchPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = all_files(arch_peer)["glm5-next-chosen"]
    wanted = arch_peer.rows(path, Script(flash=True).decode(TOKENS))
    GLM_MUTANTS[what](monkeypatch)
    assert nmse(wanted, glm(path)) > 2 * LIMIT


# Memory


def made(n_ctx: int = 64, n_seq: int = 3) -> Blocks:
    from pyggml.backend.reference import ReferenceDevice

    part = Blocks([BlockLayer(0, 4, {"a": 2}), BlockLayer(1, 4, {"a": 2, "b": 3})], n_ctx, GGMLType.F32, n_seq)
    part.allocate([ReferenceDevice()] * 2)
    return part


def ubatch(starts: list[int], each: int, seqs: list[int]) -> Ubatch:
    pos = np.concatenate([np.arange(start, start + each) for start in starts]).astype(np.int32)
    seq = np.repeat(np.array(seqs, np.int32), each)
    return Ubatch(0 * pos, pos, seq, np.ones(pos.size, np.bool_), len(seqs), seqs[0], filled=NOBODY in seqs)


def test_which_blocks_a_micro_batch_completes() -> None:
    part = made()
    spare = part.n_rows - 1
    done = part.completed(ubatch([2, 4], 3, [0, 1]))
    assert done.rows.tolist() == [[0], [part.n_rows + spare]]
    assert (done.pos.tolist(), done.first.tolist(), done.real.tolist()) == ([[0], [0]], [[-2], [0]], [[True], [False]])
    done = part.completed(ubatch([6], 7, [2]))
    assert done.rows.tolist() == [[2 * part.n_rows + 1, 2 * part.n_rows + 2]] and done.first.tolist() == [[-2, 2]]
    nobody = part.completed(ubatch([3, 3], 1, [0, NOBODY]))
    assert nobody.rows.tolist() == [[0], [part.n_rows + spare]]
    placement = part.place(ubatch([6], 7, [2]))
    assert placement is not None and placement.shape == (blocks.STEP, 2, 1)
    assert (part.mask(placement) == 0).sum(axis=1).tolist() == [1, 2, 2, 2, 2, 3, 3]
    assert part.place(ubatch([4 * spare + 3], 1, [0])) is None


def test_blocks_are_kept_copied_and_saved() -> None:
    part = made()
    part.commit(part.place(ubatch([0], 11, [0])))  # type: ignore[arg-type]
    data = np.arange(14, dtype=np.float32).tobytes()
    part.load(1, np.array([11], "<u4").tobytes() + data)
    assert part.end(1) == 11 and part.dump(1)[4:] == data and part.dump_size(1) == 4 + len(data)
    part.copy(1, 2, 0, 9)
    assert part.end(2) == 9 and part.dump(2)[4:] == data
    assert part.remove(2, 5) and part.end(2) == 5 and part.dump_size(2) == 4 + len(data) // 2
    assert not part.can_remove(1, 2, 5) and not part.remove(1, 2, 5) and part.end(1) == 11
    assert part.restore(1, None, 8) and part.end(1) == 8 and not part.restore(1, None, 9)
    assert part.loads(part.dump(1), 8) and not part.loads(part.dump(1), 9)
    for wrong in (b"", part.dump(1)[:-1]):
        with pytest.raises(StateError, match="none of blocks of 4 tokens"):
            part.load(0, wrong)
    with pytest.raises(ContextError, match="which cannot be parted"):
        part.shift(1, 4, None, -2)
    part.keep(1)
    assert part.ends == [0, 8, 0]
    part.clear()
    assert not any(part.ends)
