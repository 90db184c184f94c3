"""Models of diffusion beside llama.cpp: logits of all tokens, each of which sees all others; alone, several texts at once, and over
the wire."""

from typing import Any

import numpy as np
import pytest
from arch_files import DENOISERS, LIMIT, TOKENS
from peer_archs import ArchPeer, Script, nmse
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener

from pyggml.backend.cpu import CPUDevice
from pyggml.errors import ContextError
from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.runtime.embedder import Embedder


def rows(model: Model, texts: list[list[int]], **options: Any) -> list[np.ndarray]:
    made = Embedder(model, pooling="none", **options)
    try:
        return made.encode(texts)
    finally:
        made.close()


@pytest.mark.parametrize("name", DENOISERS)
def test_says_what_the_peer_says(arch_peer: ArchPeer, name: str) -> None:
    path = arch_peer.files()[name]
    model = Model.load(path)
    texts = [TOKENS[:5], TOKENS[5:6], TOKENS[6:50]]
    try:
        for flash in (True, False):
            theirs = arch_peer.rows(path, Script(flash=flash).decode(TOKENS))
            assert nmse(theirs, rows(model, [TOKENS], flash_attn=flash)[0]) < LIMIT
            assert nmse(theirs, rows(model, [TOKENS], flash_attn=flash, causal=True)[0]) < LIMIT  # it has no say here
        for one, among in zip(texts, rows(model, texts), strict=True):
            assert nmse(rows(model, [one])[0], among) < LIMIT
        with pytest.raises(ContextError, match="fills in masked tokens, it cannot go on from left to right"):
            Context(model, n_ctx=64)
    finally:
        model.close()


@pytest.mark.parametrize("name", DENOISERS)
def test_a_mask_of_tokens_before_alone_is_caught(
    arch_peer: ArchPeer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = arch_peer.files()[name]
    model = Model.load(path)
    monkeypatch.setattr(type(model.modules), "causal", lambda self: True)
    try:
        theirs = arch_peer.rows(path, Script().decode(TOKENS))
        assert nmse(theirs, rows(model, [TOKENS])[0]) > 2 * LIMIT
    finally:
        model.close()


def test_over_the_wire(arch_peer: ArchPeer) -> None:
    path = arch_peer.files()["dream-dense"]
    with Listener(Server([CPUDevice()], n_threads=1), port=0) as listener:
        model = Model.load(path, devices=devices_from_spec(listener.endpoint))
        try:
            theirs = arch_peer.rows(path, Script(flash=True).decode(TOKENS))
            assert nmse(theirs, rows(model, [TOKENS])[0]) < LIMIT
            assert sum(listener.server.counters.requests.values()) > 10
        finally:
            model.close()
