"""Our client on stock llama.cpp's servers: prompts of all sizes, several contexts, servers and devices.

What they compute for us is compared with what our CPU computes. Each test reads from the servers' own logs, or the counts
of ours, that weights and graphs crossed the wire.
"""

import subprocess
import sys
import time
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
F32, F16, Q8_0, Q4_0 = (int(t) for t in (GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0))
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


def assert_ours_used(server: Server, graphs: int, weights: int = WEIGHTS // 4) -> None:
    assert server.counters.bytes[C.SET_TENSOR] > weights and server.counters.refused == 0
    assert server.counters.requests[C.GRAPH_RECOMPUTE] + server.counters.requests[C.GRAPH_COMPUTE] >= graphs
    assert server.devices[0].used == 0


@pytest.mark.parametrize("flash_attn", [0, 1])
def test_prompts_of_1_to_1024_tokens(peer: Peer, model: Path, here: Callable[..., np.ndarray], flash_attn: int) -> None:
    what = prompts_of_all_sizes()
    with peer.rpc_server() as stock:
        got = ours(model, what, [stock.endpoint], flash_attn_type=flash_attn)
        assert_used(stock, len(BATCHES))
    assert_same_logits(got, here(what, flash_attn_type=flash_attn))


@pytest.mark.parametrize("where", ["one of theirs", "one of ours and one of theirs"])
@pytest.mark.parametrize(
    ("flash_attn", "type_k", "type_v"),
    [(0, F32, F32), (0, Q8_0, F16), (0, Q4_0, F16), (1, F32, F32), (1, Q8_0, Q8_0), (1, Q4_0, Q4_0), (1, Q8_0, Q4_0)],
)
def test_types_of_the_kv_cache(
    peer: Peer, model: Path, here: Callable[..., np.ndarray], where: str, flash_attn: int, type_k: int, type_v: int
) -> None:
    tokens = some_tokens(90)
    what = [("open", "a"), ("decode", "a", tokens[:70]), *(("decode", "a", [t]) for t in tokens[70:74])]
    what += [("decode", "a", tokens[74:])]
    context = {"flash_attn_type": flash_attn, "type_k": type_k, "type_v": type_v}
    server = Server([CPUDevice()], n_threads=1)
    with peer.rpc_server(n_threads=1) as stock, Listener(server, port=0) as listener:
        mixed = where != "one of theirs"
        got = ours(model, what, [listener.endpoint, stock.endpoint] if mixed else [stock.endpoint], **context)
        assert_used(stock, listed(what), MATRICES * (N_LAYER // 4 if mixed else N_LAYER))
    # queries meet a quantised K as Q8_0 there, whose blocks differ where a value is between two steps
    assert_same_logits(got, here(what, **context), limit=1e-3 if type_k in (Q8_0, Q4_0) else 1e-4)
    if mixed:
        assert_ours_used(server, listed(what))
    else:
        assert not server.counters.requests[C.HELLO]


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
        got = ours(model, what, [one.endpoint, two.endpoint], tensor_split=[1] * 2 * n_devices)
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
        got = ours(model, what, endpoints if ours_first else endpoints[::-1], tensor_split=[1, 1])
        assert_used(stock, listed(what), MATRICES)
    assert_same_logits(got, here(what))
    assert_ours_used(server, listed(what))


CLIENT = """
import sys
import numpy as np
from pyggml import Llama
print("ready", flush=True)
sys.stdin.readline()
with Llama(sys.argv[1], n_ctx=256, verbose=False, n_threads=1, rpc_servers=sys.argv[2]) as llm:
    llm.eval([int(t) for t in sys.argv[3].split()])
    for _ in range(20):
        llm.eval([7])
    np.save(sys.argv[4], llm.last_logits)
"""


def test_several_processes_at_once(peer: Peer, model: Path, here: Callable[..., np.ndarray], tmp_path: Path) -> None:
    """A stock server takes one client after the other; ours, which has the first layers, takes all of them at once."""
    texts = [some_tokens(20, seed) for seed in (1, 2)]
    what = [[("open", "a"), ("decode", "a", text), *[("decode", "a", [7])] * 20] for text in texts]
    expected = [here(steps, flash_attn_type=1, n_ctx=256) for steps in what]  # nothing is left to compile
    server = Server([CPUDevice()], n_threads=1)
    most = 0
    with peer.rpc_server(n_threads=1) as stock, Listener(server, port=0) as listener:
        endpoints = f"{listener.endpoint},{stock.endpoint}"
        clients = []
        for i, text in enumerate(texts):
            command = [sys.executable, "-c", CLIENT, model, endpoints, " ".join(map(str, text)), tmp_path / f"{i}.npy"]
            clients.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        with clients[0], clients[1]:
            assert [client.stdout.readline() for client in clients] == ["ready\n"] * 2  # type: ignore[union-attr]
            for client in clients:
                client.stdin.write("\n")  # type: ignore[union-attr]
                client.stdin.flush()  # type: ignore[union-attr]
            while any(client.poll() is None for client in clients):
                most = max(most, listener.n_clients)
                time.sleep(0.002)
        assert [client.returncode for client in clients] == [0, 0]
        assert_used(stock, sum(map(listed, what)), MATRICES * len(texts))
        assert stock.count("hello") >= len(texts)
    for i, logits in enumerate(expected):
        assert_same_logits(np.load(tmp_path / f"{i}.npy")[None], logits[-1:])
    assert_ours_used(server, sum(map(listed, what)), len(texts) * WEIGHTS // 4)
    assert most == len(texts), "they were not there at once"
