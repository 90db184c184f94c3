"""Our client on stock llama.cpp's servers: prompts of all sizes, several contexts, servers and devices.

What they compute for us is compared with what our CPU computes. Each test reads from the servers' own logs, or the counts
of ours, that weights and graphs crossed the wire.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer import Peer, PeerServer
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import Command
from two_sides import (
    BATCHES,
    N_LAYER,
    WEIGHTS,
    assert_same_logits,
    contexts_that_come_and_go,
    listed,
    prompts_of_all_sizes,
    small_model,
    some_tokens,
)

from pyggml import Llama
from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import GGMLType

C = Command
MATRICES = 7  # a layer's


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("ours") / "small.gguf")


def ours(
    model: Path, steps: Sequence[Sequence[Any]], endpoints: Sequence[str] = (), flash_attn_type: int = 0, **options: Any
) -> np.ndarray:
    """Peer.steps with our Llama: here each context has a model of its own, all on one connection to each server."""
    contexts: dict[str, Llama] = {}
    options = {"n_ctx": 1024, "n_batch": 1024, "verbose": False, "n_threads": 2} | options
    rows = []
    for action, name, *rest in steps:
        if action == "open":
            fields = {"flash_attn_type": flash_attn_type} | (rest[0] if rest else {})
            flash_attn = bool(fields.pop("flash_attn_type"))
            where = {"rpc_servers": ",".join(endpoints)} if endpoints else {}
            contexts[name] = Llama(str(model), flash_attn=flash_attn, **{**options, **fields, **where})
        elif action == "free":
            contexts.pop(name).close()
        elif action == "clear":
            contexts[name].reset()
        else:
            assert action == "decode"
            contexts[name].eval(rest[0])
            rows.append(np.array(contexts[name].last_logits))
    for context in contexts.values():
        context.close()
    return np.array(rows)


@pytest.fixture(scope="module")
def here(model: Path) -> Callable[..., np.ndarray]:
    """`ours` on this CPU, computed once."""
    known: dict[str, np.ndarray] = {}

    def steps(what: list[tuple[Any, ...]], **options: Any) -> np.ndarray:
        key = repr((what, options))
        if key not in known:
            known[key] = ours(model, what, **options)
        return known[key]

    return steps


def assert_used(stock: PeerServer, graphs: int, matrices: int = MATRICES * N_LAYER) -> None:
    assert stock.count("set_tensor") > matrices
    assert stock.count("graph_compute") >= 1
    assert stock.count("graph_compute") + stock.count("graph_recompute") >= graphs


@pytest.mark.parametrize("flash_attn", [0, 1])
def test_prompts_of_1_to_1024_tokens(peer: Peer, model: Path, here: Callable[..., np.ndarray], flash_attn: int) -> None:
    what = prompts_of_all_sizes()
    with peer.rpc_server() as stock:
        got = ours(model, what, [stock.endpoint], flash_attn_type=flash_attn)
        assert_used(stock, len(BATCHES))
    assert_same_logits(got, here(what, flash_attn_type=flash_attn))


def test_a_kv_cache_of_f32(peer: Peer, model: Path, here: Callable[..., np.ndarray]) -> None:
    what = contexts_that_come_and_go()
    types = {"type_k": int(GGMLType.F32), "type_v": int(GGMLType.F32)}
    with peer.rpc_server() as stock:
        got = ours(model, what, [stock.endpoint], **types)
        assert_used(stock, listed(what))
    assert_same_logits(got, here(what, **types))


@pytest.mark.parametrize("flash_attn", [0, 1])
def test_micro_batches_without_outputs(
    peer: Peer, model: Path, here: Callable[..., np.ndarray], flash_attn: int
) -> None:
    what = [("open", "a"), ("decode", "a", some_tokens(100)), ("decode", "a", some_tokens(30))]
    with peer.rpc_server() as stock:
        got = ours(model, what, [stock.endpoint], flash_attn_type=flash_attn, n_ubatch=8)
        assert_used(stock, 17)
        assert stock.count("get_tensor") == 2
    assert_same_logits(got, here(what, flash_attn_type=flash_attn, n_ubatch=8))


def test_contexts_of_one_process(peer: Peer, model: Path, here: Callable[..., np.ndarray]) -> None:
    """A stock server serves one connection, and forgets all its graphs when any buffer is freed."""
    what = contexts_that_come_and_go()
    with peer.rpc_server() as stock:
        got = ours(model, what, [stock.endpoint])
        assert_used(stock, listed(what), 3 * MATRICES * N_LAYER)
        assert stock.count("free_buffer") >= 3 and stock.count("graph_recompute") >= 1
        again = ours(model, what, [stock.endpoint])
    assert_same_logits(got, here(what))
    assert (again == got).all(), "the connection is closed and opened again in between"


@pytest.mark.parametrize("n_devices", [1, 2])
def test_two_stock_servers(peer: Peer, model: Path, here: Callable[..., np.ndarray], n_devices: int) -> None:
    what = contexts_that_come_and_go()
    with (
        peer.rpc_server(n_threads=1, n_devices=n_devices) as one,
        peer.rpc_server(n_threads=1, n_devices=n_devices) as two,
    ):
        got = ours(model, what, [one.endpoint, two.endpoint])
        for stock in (one, two):
            assert_used(stock, listed(what), MATRICES)
    assert_same_logits(got, here(what))


@pytest.mark.parametrize("ours_first", [True, False])
def test_one_of_ours_and_one_of_theirs(
    peer: Peer, model: Path, here: Callable[..., np.ndarray], ours_first: bool
) -> None:
    what = contexts_that_come_and_go()
    server = Server([CPUDevice()], n_threads=1)
    with peer.rpc_server(n_threads=1) as stock, Listener(server, port=0) as listener:
        endpoints = [listener.endpoint, stock.endpoint]
        got = ours(model, what, endpoints if ours_first else endpoints[::-1])
        assert_used(stock, listed(what), MATRICES)
    assert_same_logits(got, here(what))
    assert server.counters.bytes[C.SET_TENSOR] > WEIGHTS // 4 and server.counters.refused == 0
    assert server.counters.requests[C.GRAPH_RECOMPUTE] + server.counters.requests[C.GRAPH_COMPUTE] >= listed(what)
    assert server.slots[0].used == 0
