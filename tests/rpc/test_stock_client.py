"""A stock llama.cpp on our servers: prompts of all sizes, several contexts, processes, servers and devices, KV types.

What it computes there is compared with what it computes alone. Each test reads from our servers' counts that weights and
graphs crossed the wire.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer import Peer
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V7, Command
from two_sides import (
    BATCHES,
    WEIGHTS,
    assert_same_logits,
    contexts_that_come_and_go,
    listed,
    prompts_of_all_sizes,
    small_model,
    some_tokens,
)

from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import GGMLType

C = Command
F32, F16, Q8_0, Q4_0 = (int(t) for t in (GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("stock") / "small.gguf")


@pytest.fixture(scope="module")
def alone(peer: Peer, model: Path) -> Callable[..., np.ndarray]:
    """`peer.steps` of a stock llama.cpp by itself, computed once."""
    known: dict[str, np.ndarray] = {}

    def steps(what: list[tuple[Any, ...]], **context: Any) -> np.ndarray:
        key = repr((what, context))
        if key not in known:
            known[key] = peer.steps(model, what, **context)
        return known[key]

    return steps


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server([CPUDevice()], n_threads=2, protocol=V7)
    yield server
    server.close()


def assert_used(server: Server, graphs: int, weights: int = WEIGHTS) -> None:
    counters = server.counters
    assert counters.bytes[C.SET_TENSOR] > weights
    computed = counters.requests[C.GRAPH_COMPUTE] + counters.requests[C.GRAPH_RECOMPUTE]
    assert computed >= graphs and counters.bytes[C.GRAPH_COMPUTE] > 10_000
    assert counters.refused == 0
    assert all(served.used == 0 for served in server.devices), "the client left something"


@pytest.mark.parametrize("flash_attn", [0, 1])
def test_prompts_of_1_to_1024_tokens(
    peer: Peer, model: Path, alone: Callable[..., np.ndarray], listener: Listener, flash_attn: int
) -> None:
    what = prompts_of_all_sizes()
    got = peer.steps(model, what, endpoints=[listener.endpoint], flash_attn_type=flash_attn)
    assert_same_logits(got, alone(what, flash_attn_type=flash_attn))
    assert_used(listener.server, len(BATCHES))


@pytest.mark.parametrize(
    ("flash_attn", "type_k", "type_v"),
    [(1, F32, F32), (0, F32, F16), (0, Q8_0, F16), (0, Q4_0, F16), (1, Q8_0, Q8_0), (1, Q4_0, Q4_0), (1, Q8_0, Q4_0)],
)
def test_types_of_the_kv_cache(
    peer: Peer, model: Path, alone: Callable[..., np.ndarray], listener: Listener, flash_attn: int, type_k: int, type_v: int
) -> None:  # fmt: skip
    context = {"flash_attn_type": flash_attn, "type_k": type_k, "type_v": type_v}
    tokens = some_tokens(120)
    what = [("open", "a"), ("decode", "a", tokens[:77]), *(("decode", "a", [t]) for t in tokens[77:80])]
    what += [("decode", "a", tokens[80:])]
    got = peer.steps(model, what, endpoints=[listener.endpoint], **context)
    # queries meet a quantised K as Q8_0 there, whose blocks differ where a value is between two steps
    assert_same_logits(got, alone(what, **context), limit=1e-3 if type_k in (Q8_0, Q4_0) else 1e-4)
    assert_used(listener.server, listed(what))


@pytest.mark.parametrize("flash_attn", [0, 1])
def test_micro_batches_without_outputs(
    peer: Peer, model: Path, alone: Callable[..., np.ndarray], listener: Listener, flash_attn: int
) -> None:
    """Of 13 micro-batches the last one alone has an output: tensors of no rows cross the wire."""
    what = [("open", "a"), ("decode", "a", some_tokens(100)), ("decode", "a", some_tokens(30))]
    got = peer.steps(model, what, endpoints=[listener.endpoint], flash_attn_type=flash_attn, n_ubatch=8)
    assert_same_logits(got, alone(what, flash_attn_type=flash_attn, n_ubatch=8))
    assert_used(listener.server, 17)
    assert listener.server.counters.requests[C.GET_TENSOR] == 2


def test_contexts_of_one_process(peer: Peer, model: Path, alone: Callable[..., np.ndarray], listener: Listener) -> None:
    """One is freed while another lives, and computes its stored graph again: a stock server would hang up."""
    what = contexts_that_come_and_go()
    got = peer.steps(model, what, endpoints=[listener.endpoint])
    assert_same_logits(got, alone(what))
    assert_used(listener.server, listed(what))
    counters = listener.server.counters
    assert counters.requests[C.GRAPH_RECOMPUTE] >= 1 and counters.requests[C.FREE_BUFFER] >= 4


def test_several_processes_at_once(
    peer: Peer, model: Path, alone: Callable[..., np.ndarray], listener: Listener
) -> None:
    what = [contexts_that_come_and_go(seed) for seed in (1, 2, 3)]
    got: dict[int, np.ndarray] = {}
    most = 0

    def client(i: int) -> None:
        got[i] = peer.steps(model, what[i], endpoints=[listener.endpoint], n_threads=1, n_threads_batch=1)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(len(what))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, listener.n_clients)
        time.sleep(0.002)
    for i, steps in enumerate(what):
        assert_same_logits(got[i], alone(steps))
    assert_used(listener.server, 3 * listed(what[0]), 3 * WEIGHTS)
    assert most >= 2, "they were not there at once"


# ---- several servers, several devices


def test_two_of_our_servers(peer: Peer, model: Path, alone: Callable[..., np.ndarray]) -> None:
    what = contexts_that_come_and_go()
    servers = [Server([CPUDevice()], n_threads=1, protocol=V7) for _ in range(2)]
    with Listener(servers[0], port=0) as one, Listener(servers[1], port=0) as two:
        got = peer.steps(model, what, endpoints=[one.endpoint, two.endpoint], tensor_split=[1, 1])
    assert_same_logits(got, alone(what))
    for server in servers:
        assert_used(server, listed(what), WEIGHTS // 4)


@pytest.mark.parametrize("ours_first", [True, False])
def test_one_of_ours_and_one_of_theirs(
    peer: Peer, model: Path, alone: Callable[..., np.ndarray], listener: Listener, ours_first: bool
) -> None:
    tokens = some_tokens(40)
    what = [("open", "a"), ("decode", "a", tokens[:30]), *(("decode", "a", [t]) for t in tokens[30:34])]
    what += [("decode", "a", tokens[34:])]
    with peer.rpc_server(n_threads=1) as stock:
        endpoints = [listener.endpoint, stock.endpoint]
        got = peer.steps(model, what, endpoints=endpoints if ours_first else endpoints[::-1], tensor_split=[1, 1])
        assert stock.count("set_tensor") >= 7 and stock.count("graph_compute") >= 2
    assert_same_logits(got, alone(what))
    assert_used(listener.server, listed(what), WEIGHTS // 4)


@pytest.mark.parametrize("flash_attn", [0, 1])
def test_two_devices_with_pipeline_parallelism(
    peer: Peer, model: Path, alone: Callable[..., np.ndarray], flash_attn: int
) -> None:
    """A stock client then keeps four copies of each input, so that micro-batches overlap."""
    server = Server([CPUDevice("CPU0"), CPUDevice("CPU1")], n_threads=1, protocol=V7)
    tokens = some_tokens(200)
    what = [("open", "a"), ("decode", "a", tokens[:150]), *(("decode", "a", [t]) for t in tokens[150:156])]
    what += [("decode", "a", tokens[156:])]
    context = {"flash_attn_type": flash_attn, "n_ubatch": 16}
    with Listener(server, port=0) as listener:
        got = peer.steps(model, what, endpoints=[listener.endpoint], **context)
    assert_same_logits(got, alone(what, **context))
    assert_used(server, 2 * 19)
    assert server.counters.requests[C.COPY_TENSOR] >= 19
