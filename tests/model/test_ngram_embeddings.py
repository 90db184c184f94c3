"""Qwen 4 beyond what all architectures are held to: the hash of the last tokens, the memory of tokens, a mutant of each special
part."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse

from pyggml import ops
from pyggml.errors import ContextError, ModelError, StateError
from pyggml.memory.tokens import Tokens
from pyggml.memory.ubatch import NOBODY, Ubatch
from pyggml.model import hyper_connections, ngram_embeddings, pooled_indexer
from pyggml.model.arch import qwen4exp
from pyggml.model.model import Model
from pyggml.model.ngram_embeddings import NgramKeys
from pyggml.runtime.context import Context

LIMIT = 5e-7
TOKENS = [int(t) for t in np.random.default_rng(4).integers(0, 128, 100)]
TOKENS[10::17] = [5] * len(TOKENS[10::17])  # what ends a text


def ours(path: Any) -> np.ndarray:
    model = Model.load(path)
    context = Context(model, n_ctx=256, n_ubatch=256)
    try:
        return np.concatenate([context.decode(TOKENS[:33], logits="all"), context.decode(TOKENS[33:], logits="all")])
    finally:
        context.close(), model.close()


def test_rows_are_hashed_as_the_reference_does_it() -> None:
    keys = NgramKeys.__new__(NgramKeys)
    keys.n, keys.n_each, keys.end, keys.n_heads = 3, 2, 5, 4
    keys.factors = np.array([(1 << 63) + 12345, 1_000_003, 3_000_000_000_000_019], np.uint64)
    keys.sizes, keys.offsets = np.array([101, 97, 89, 128], np.uint64), np.array([0, 101, 198, 287], np.uint64)
    tokens = np.array([3, 9, 5, 8, 7, 6], np.int32)
    before = np.stack([[-1, 3, 9, 5, 8, 7], [-1, -1, 3, 9, 5, 8]]).astype(np.int32)
    wanted = []
    for i, token in enumerate(tokens.tolist()):
        line, cut = [token], False
        for back in before[:, i].tolist():
            cut = cut or back in (-1, 5)
            line.append(5 if cut else back)
        mixed, row = token * int(keys.factors[0]) % 2**64, []
        for back in (1, 2):
            mixed ^= line[back] * int(keys.factors[back]) % 2**64
            row += [mixed % int(keys.sizes[h]) + int(keys.offsets[h]) for h in (2 * back - 2, 2 * back - 1)]
        wanted.append(row)
    assert keys.rows(tokens, before).tolist() == wanted


def test_bad_keys_are_named(arch_peer: ArchPeer) -> None:
    path = all_files(arch_peer)["qwen4exp-chosen"]
    for key, value, said in (
        ("ple.ngram_size", 4, "ple.layer_multipliers is .*, must be 4 integers from 0"),
        ("ple.heads_per_ngram", 40, "80 heads"),
        ("attention.indexer.top_k", 9, "must be pools of 4 tokens"),
        ("hyper_connection.low_rank", 9, r"hc_attn_down.weight is \[1024, 8, 1, 1\], must be \[1024, 9, 1, 1\]"),
    ):
        with pytest.raises(ModelError, match=said):
            Model.load(path, metadata={f"qwen4exp.{key}": value})


def ubatch(starts: list[int], each: int, seqs: list[int], first_token: int = 10) -> Ubatch:
    pos = np.concatenate([np.arange(start, start + each) for start in starts]).astype(np.int32)
    seq = np.repeat(np.array(seqs, np.int32), each)
    tokens = np.arange(first_token, first_token + pos.size, dtype=np.int32)
    return Ubatch(tokens, pos, seq, np.ones(pos.size, np.bool_), len(seqs), 0, filled=NOBODY in seqs)


def test_tokens_are_kept_copied_and_saved() -> None:
    part = Tokens(16, 3)
    one = ubatch([0, 0], 3, [0, 2])
    assert part.before(one, 2).tolist() == [[-1, 10, 11, -1, 13, 14], [-1, -1, 10, -1, -1, 13]]
    part.commit(part.place(one))  # type: ignore[arg-type]
    more = ubatch([3, 3], 1, [0, NOBODY], 20)
    assert part.before(more, 2).tolist() == [[12, -1], [11, -1]]
    part.copy(2, 1, 0, 2)
    assert part.ends == [3, 2, 3] and part.tokens[1, :2].tolist() == [13, 14]
    data = part.dump(2)
    assert len(data) == part.dump_size(2) == 12 and part.loads(data, 3) and not part.loads(data, 4)
    assert part.remove(2, 1) and part.end(2) == 1 and not part.remove(0, 1, 2)
    part.load(2, data, 2)
    assert part.end(2) == 2 and part.restore(2, None, 1) and not part.restore(2, None, 5)
    with pytest.raises(StateError, match="no tokens of a context of 16"):
        part.load(0, bytes(68))
    with pytest.raises(ContextError, match="neighbouring tokens"):
        part.shift(1, 1, None, -1)
    assert part.place(ubatch([15], 2, [0])) is None
    part.keep(1)
    assert part.ends == [0, 2, 0]


BEFORE, ROWS, FINISHED = Tokens.before, NgramKeys.rows, pooled_indexer.Means.finished
SIGMOID = qwen4exp.SigmoidDeltaNet.gated


def _without_end(self: NgramKeys, tokens: Any, before: Any) -> Any:
    other = SimpleNamespace(**{**vars(self), "end": 999})
    return ROWS(other, tokens, before)  # type: ignore[arg-type]


def _neighbours(self: Any, g: Any, x: Any) -> Any:
    keys, self.keys = self.keys, SimpleNamespace(n=1)
    try:
        return CONVOLVED(self, g, x)
    finally:
        self.keys = keys


CONVOLVED = ngram_embeddings.NgramStreams._convolved
MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "tokens of the part before are forgotten": lambda m: m.setattr(Tokens, "commit", lambda self, placement: None),
    "the tokens before in another order": lambda m: m.setattr(Tokens, "before", lambda self, ub, n: BEFORE(self, ub, n)[::-1]),
    "looked up across the end of a text": lambda m: m.setattr(NgramKeys, "rows", _without_end),
    "a convolution over neighbours": lambda m: m.setattr(ngram_embeddings.NgramStreams, "_convolved", _neighbours),
    "no root of scores": lambda m: m.setattr(ngram_embeddings.ops, "sqrt", lambda x, **more: x),
    "no norm of queries": lambda m: m.setattr(pooled_indexer.MeanIndexer, "queries", lambda self, g, x, low: self.rope(
        g, ops.reshape(g.linear(getattr(self, "indexer.q_proj"), x), self.size, self.n_head, g.n_tokens))),
    "means are not turned": lambda m: m.setattr(pooled_indexer.Means, "finished", lambda self, g, row, at: getattr(
        self.owner, "indexer.k_norm")(g, row)),
    "swish in the delta net's gate": lambda m: m.setattr(qwen4exp.SigmoidDeltaNet, "gated", qwen4exp.DeltaNet.gated),
    "streams are not normed": lambda m: m.setattr(hyper_connections.StreamWeights, "__call__", lambda self, x, eps: ops.mul(
        x, ops.reshape(self.weight.value, *self.ne))),
}  # fmt: skip


@pytest.mark.parametrize("what", [None, *MUTANTS])
def test_mutants(what: str | None, arch_peer: ArchPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """None: the model as it is, over texts' ends."""
    path = all_files(arch_peer)["qwen4exp-chosen"]
    theirs = arch_peer.rows(path, Script(flash=True).decode(TOKENS))
    if what is None:
        assert nmse(theirs, ours(path)) < LIMIT
        return
    MUTANTS[what](monkeypatch)
    assert nmse(theirs, ours(path)) > 2 * LIMIT
