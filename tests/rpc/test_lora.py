"""LoRA adapters over RPC: llama.cpp's client with them on our server, our client with them on its server."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import mean_kl
from peer import Peer
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V7
from tiny_logits import TOKENS
from tiny_lora import all_weights, write_lora
from tiny_model import write_llama

from pyggml.backend.base import extra_devices
from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.context import Context

SCALES = [[0, 0.75], [1, -1.5]]
STEPS: list[Any] = [("open", "a"), ("adapt", "a", SCALES), ("decode", "a", TOKENS[:20]), ("adapt", "a", [SCALES[0]])]
STEPS += [("decode", "a", TOKENS[20:39]), ("adapt", "a", []), ("decode", "a", TOKENS[39:])]


@pytest.fixture(params=[0, 4], ids=["dense", "experts"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A model, and two adapters for it, one of them for the output too."""
    n_expert = request.param
    model = write_llama(tmp_path / "model.gguf", n_expert=n_expert, tied=False)
    return model, [
        write_lora(tmp_path / f"{output}.gguf", all_weights(2, n_expert, output), n_expert=n_expert, seed=output)
        for output in (False, True)
    ]


def test_a_stock_client_on_our_server(files: tuple[Path, list[Path]], peer: Peer) -> None:
    model, adapters = files
    there = peer.steps(model, STEPS, adapters=adapters)
    with Listener(Server([CPUDevice()], n_threads=1, protocol=V7), port=0) as listener:
        here = peer.steps(model, STEPS, adapters=adapters, endpoints=[listener.endpoint])
    np.testing.assert_allclose(here, there, atol=5e-3 * np.abs(there).max())
    assert mean_kl(there, here) < 1e-5
    assert mean_kl(there, peer.steps(model, [s for s in STEPS if s[0] != "adapt"])) > 1e-3, "adapters matter"


def test_our_client_on_a_stock_server(files: tuple[Path, list[Path]], peer: Peer) -> None:
    path, adapters = files
    there = peer.steps(path, STEPS, adapters=adapters)
    with peer.rpc_server() as stock, contextlib.ExitStack() as stack:
        model = Model.load(path, devices=extra_devices("rpc", stock.endpoint))
        stack.callback(model.close)
        context = Context(model, n_ctx=512, flash_attn=False)
        stack.callback(context.close)
        loaded = [model.load_adapter(adapter) for adapter in adapters]
        assert all(t.buffer is not None and t.buffer.device is model.devices[0] for t in loaded[0].tensors())
        found = []
        for step in STEPS[1:]:
            if step[0] == "adapt":
                context.set_adapters([(loaded[i], scale) for i, scale in step[2]])
            else:
                found.append(context.decode(step[2])[0])
        assert stock.count("graph_compute")
    np.testing.assert_allclose(np.array(found), there, atol=5e-3 * np.abs(there).max())
    assert mean_kl(there, np.array(found)) < 1e-5
