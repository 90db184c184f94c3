"""Several tokens of a text at once, each with the bits that it has alone: what drafts are checked by."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import GGMLType
from pyggml.model.model import Model
from pyggml.runtime.batch import Batch, split
from pyggml.runtime.context import Context

Q = gguf.GGMLQuantizationType
MODELS: dict[str, dict[str, Any]] = {
    "Q4_0": {"quant": Q.Q4_0},
    "Q8_0": {"quant": Q.Q8_0, "biases": True},
    "F16": {"quant": Q.F16, "n_head": 6, "n_embd": 96},
    "experts": {"quant": Q.Q8_0, "n_expert": 4},
}
CONTEXTS: dict[str, dict[str, Any]] = {
    "fused": {},
    "unfused": {"flash_attn": False},
    "unfused F32": {"flash_attn": False, "type_k": GGMLType.F32, "type_v": GGMLType.F32},
    "cache in blocks": {"type_k": GGMLType.Q8_0, "type_v": GGMLType.Q8_0},
    "many": {"n_seq_max": 3},
    "unified": {"n_seq_max": 3, "kv_unified": True},
}


def open_model(path: Path, name: str) -> Model:
    return Model.load(write_llama(path, head_k=32, head_v=32, **MODELS[name]), cpu=CPUDevice())


@pytest.mark.parametrize("name", MODELS)
def test_each_token_has_the_bits_that_it_has_alone(tmp_path: Path, name: str) -> None:
    model, rng = open_model(tmp_path / "model.gguf", name), np.random.default_rng(0)
    differ = 0
    for options in CONTEXTS.values():
        context = Context(model, n_ctx=1536, n_threads=2, **options)
        for start, n in ((7, 2), (250, 5), (251, 9), (253, 23)):  # 256 cells are seen, then 512
            context.clear()
            context.decode(rng.integers(0, N_VOCAB, start))
            tokens = rng.integers(0, N_VOCAB, n).tolist()
            alone = np.concatenate([context.decode([token]) for token in tokens])
            follows = context.decode([3])
            context.truncate(start)
            np.testing.assert_array_equal(context.verify(tokens), alone, err_msg=f"{options} {start} {n}")
            np.testing.assert_array_equal(context.decode([3]), follows)
            context.truncate(start)
            differ += int((context.decode(tokens, logits="all") != alone).any())
        context.close()
    model.close()
    assert differ, "kernels for several columns give the same bits: then this test shows nothing"


@pytest.mark.parametrize("kv_unified", [False, True], ids=["streams", "unified"])
def test_beside_a_prompt_and_other_texts(tmp_path: Path, kv_unified: bool) -> None:
    """Drafts of two sequences, the token of a third and a prompt in one batch. In shared cells a sequence's tokens lie elsewhere
    than where they lay alone, and where is the order of sums."""
    model, rng = open_model(tmp_path / "model.gguf", "Q4_0"), np.random.default_rng(1)
    context = Context(model, n_ctx=4 * 256, n_seq_max=4, kv_unified=kv_unified)
    drafts = {0: rng.integers(0, N_VOCAB, 4).tolist(), 2: rng.integers(0, N_VOCAB, 8).tolist()}
    prompt = rng.integers(0, N_VOCAB, 40)
    alone = {}
    for again in (False, True):
        context.clear()
        for seq in (0, 1, 2):
            context.decode(Batch.of([5 + seq, 6, 7], 0, seq))
        if not again:
            for seq, tokens in drafts.items():
                rows = [context.decode(Batch.of([token], 3 + i, seq)) for i, token in enumerate(tokens)]
                alone[seq] = np.concatenate(rows)
    batch = Batch.join([
        Batch.of(drafts[0], 3, 0, "all", one_by_one=True), Batch.of([9], 3, 1),
        Batch.of(drafts[2], 3, 2, "all", one_by_one=True), Batch.of(prompt, 0, 3, "none"),
    ])  # fmt: skip
    found = context.decode(batch)
    assert len(found) == 13
    for rows, seq in ((found[:4], 0), (found[5:], 2)):
        if kv_unified:
            np.testing.assert_allclose(rows, alone[seq], atol=1e-5)
        else:
            np.testing.assert_array_equal(rows, alone[seq])
    context.close(), model.close()


@pytest.mark.parametrize("n_streams", [1, 4])
def test_micro_batches_of_their_own(n_streams: int) -> None:
    parts = [Batch.of(range(n), 0, seq, "all", one_by_one=apart) for seq, n, apart in ((0, 5, True), (1, 1, False), (2, 3, True), (3, 9, False))]  # fmt: skip
    batch = Batch.join(parts)
    seen: list[int] = []
    for ub, rows in split(batch, 512, n_streams, 4):
        real = rows[rows >= 0]
        assert (batch.one_by_one[real] == ub.one_by_one).all()
        np.testing.assert_array_equal(ub.tokens[rows >= 0], batch.tokens[real])
        seen += real.tolist()
    assert sorted(seen) == list(range(batch.n))
    for seq in range(4):
        mine = [row for row in seen if batch.seq[row] == seq]
        assert mine == sorted(mine)
    assert [field.name for field in dataclasses.fields(batch)][-1] == "one_by_one"
