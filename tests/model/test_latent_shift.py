"""Latent attention after tokens in a sequence's midst are forgotten: the parts of keys that know positions are turned, and no
others."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from arch_files import TOKENS
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse

from pyggml.memory import shift
from pyggml.memory.kv_tensors import KVLayer
from pyggml.model.model import Model
from pyggml.runtime.context import Context

BESIDE_PEER = ("deepseek2-lite", "deepseek2-expanded", "minicpm3-plain")
FILES = (*BESIDE_PEER, "deepseek2-yarn", "deepseek32-sparse", "glm-dsa-sparse")
"""llama.cpp turns the keys of indexers as if they were latent rows, and gives keys their magnitude (yarn) anew."""

START, KEEP, GONE = 45, 6, 17
LIMIT = 5e-5
"""Keys are rounded to F16 once more, and a token may choose another expert then."""


def after_a_shift(path: Path, flash: bool) -> np.ndarray:
    model = Model.load(path)
    context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=flash)
    try:
        context.decode(TOKENS[:START], logits="none")
        context.shift(KEEP, GONE)
        return context.decode(TOKENS[START:], logits="all")
    finally:
        context.close(), model.close()


@pytest.mark.parametrize("flash", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", BESIDE_PEER)
def test_says_what_the_peer_says(arch_peer: ArchPeer, name: str, flash: bool) -> None:
    path = all_files(arch_peer)[name]
    script = Script(flash=flash).decode(TOKENS[:START], outputs=False)
    script.do("remove", 0, KEEP, KEEP + GONE).do("add", 0, KEEP + GONE, START, -GONE)
    theirs = arch_peer.rows(path, script.decode(TOKENS[START:], START - GONE))
    assert nmse(theirs, after_a_shift(path, flash)) < LIMIT


def keys(context: Context) -> np.ndarray:
    """What the first layer keeps, which depends on nothing but tokens and positions."""
    tensor = context.cache.k[0]
    assert tensor.buffer is not None
    rows = np.frombuffer(bytes(tensor.buffer.get(tensor)), np.float16).reshape(-1, tensor.ne[0])
    return rows[: START - GONE].astype(np.float32)


def difference(path: Path) -> float:
    """Between keys that were moved and those of the same tokens where they are now."""
    model = Model.load(path)
    moved, fresh = (Context(model, n_ctx=256, n_ubatch=256) for _ in range(2))
    try:
        moved.decode(TOKENS[:START], logits="none")
        moved.shift(KEEP, GONE)
        fresh.decode([*TOKENS[:KEEP], *TOKENS[KEEP + GONE : START]], logits="none")
        return nmse(keys(fresh), keys(moved))
    finally:
        moved.close(), fresh.close(), model.close()


@pytest.mark.parametrize("name", FILES)
def test_keys_are_those_of_the_new_positions(arch_peer: ArchPeer, name: str) -> None:
    assert difference(all_files(arch_peer)[name]) < 1e-6


def turned_from_the_first_element(layer: KVLayer) -> KVLayer:
    assert isinstance(layer.turn, partial)
    return layer._replace(turn=partial(layer.turn.func, offset=0))


def what_lies_beside_stays(layer: KVLayer) -> KVLayer:
    return layer._replace(turn_beside=None)


@pytest.mark.parametrize("wrong", [turned_from_the_first_element, what_lies_beside_stays])
def test_what_is_wrong_is_caught(arch_peer: ArchPeer, wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = shift._parts
    monkeypatch.setattr(shift, "_parts", lambda layer: parts(wrong(layer)))
    assert difference(all_files(arch_peer)["deepseek32-sparse"]) > 1e-4
