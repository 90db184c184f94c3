"""Stock llama.cpp at the other end of the wire: its client on our server, our client on its server.

Each test reads from the server's counts that weights and graphs did cross the wire.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import mean_kl
from peer import Peer
from pyggml_rpc.cache import HEADER, WeightCache
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V7, Command

from pyggml import Llama
from pyggml.backend.base import extra_devices
from pyggml.backend.cpu import CPUDevice

C = Command
MIB = 1 << 20
PROMPT = "The first thing that a student of physics learns is"
WEIGHTS = 90 * MIB  # of the model's 98: the rest is metadata and what stays with the client


@pytest.fixture
def server() -> Iterator[Server]:
    yield Server([CPUDevice()], n_threads=2, protocol=V7)


@pytest.fixture(scope="module")
def tokens(peer: Peer, smollm2: Path) -> list[int]:
    text = PROMPT + " that nature can be described by a few simple laws, and that these laws can be tested."
    return peer.tokenize(smollm2, [text])[0]


@pytest.fixture(scope="module")
def expected(peer: Peer, smollm2: Path, tokens: list[int]) -> np.ndarray:
    """Stock llama.cpp by itself."""
    return peer.logits(smollm2, tokens)


def assert_close(expected: np.ndarray, got: np.ndarray) -> None:
    assert mean_kl(expected, got) < 0.01
    assert mean_kl(expected, np.roll(got, 1, axis=0)) > 0.5, "this test could not fail"


def bytes_in(server: Server, command: Command) -> int:
    return server.counters.bytes[command]


# ---- a stock client on our server


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("n_ubatch", [512, 4])
def test_stock_client_logits(
    peer: Peer, smollm2: Path, tokens: list[int], expected: np.ndarray, listener: Listener, server: Server,
    flash_attn: bool, n_ubatch: int,
) -> None:  # fmt: skip
    got = peer.logits(smollm2, tokens, endpoints=[listener.endpoint], flash_attn=flash_attn, n_ubatch=n_ubatch)
    assert_close(expected, got)
    assert bytes_in(server, C.SET_TENSOR) > WEIGHTS
    assert bytes_in(server, C.GRAPH_COMPUTE) > 300_000
    assert server.counters.requests[C.ALLOC_BUFFER] >= 3
    assert server.counters.refused == 0
    assert server.devices[0].used == 0, "the client left something"


@pytest.mark.parametrize("flash_attn", [False, True])
def test_stock_client_generates(
    peer: Peer, smollm2: Path, listener: Listener, server: Server, flash_attn: bool
) -> None:  # fmt: skip
    result = peer.rpc_generate([listener.endpoint], smollm2, PROMPT, 16, flash_attn=flash_attn)
    assert len(result["tokens"]) == 16
    assert server.counters.requests[C.GRAPH_RECOMPUTE] >= 13, "the graph is the same from token to token"
    assert 1 <= server.counters.requests[C.GRAPH_COMPUTE] <= 4 and bytes_in(server, C.SET_TENSOR) > WEIGHTS
    # and the text does not depend on who asks: a second client, now that the first is gone
    again = peer.rpc_generate([listener.endpoint], smollm2, PROMPT, 16, flash_attn=flash_attn)
    assert again["tokens"] == result["tokens"]


def test_stock_client_on_two_servers_and_two_devices(
    peer: Peer, smollm2: Path, tokens: list[int], expected: np.ndarray
) -> None:
    devices = [CPUDevice("CPU0"), CPUDevice("CPU1")], [CPUDevice()]
    servers = [Server(of_one, n_threads=1, protocol=V7) for of_one in devices]
    with Listener(servers[0], port=0) as first, Listener(servers[1], port=0) as second:
        got = peer.logits(smollm2, tokens, endpoints=[first.endpoint, second.endpoint])
    assert_close(expected, got)
    assert sum(bytes_in(s, C.SET_TENSOR) for s in servers) > WEIGHTS
    for server in servers:
        assert bytes_in(server, C.SET_TENSOR) > WEIGHTS // 6
        assert server.counters.requests[C.GRAPH_COMPUTE] >= 1 and server.counters.refused == 0


def test_stock_client_and_the_weight_cache(
    peer: Peer, smollm2: Path, tokens: list[int], expected: np.ndarray, tmp_path: Path
) -> None:
    """Only one tensor of this model is over 10 MiB: the embedding, which is the output matrix too."""
    server = Server([CPUDevice()], n_threads=2, cache=WeightCache(tmp_path), protocol=V7)
    sent = []
    with Listener(server, port=0) as listener:
        for _ in range(2):
            before = bytes_in(server, C.SET_TENSOR)
            assert_close(expected, peer.logits(smollm2, tokens, endpoints=[listener.endpoint]))
            sent.append(bytes_in(server, C.SET_TENSOR) - before)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size > 10 * MIB
    assert sent[0] - sent[1] == file.stat().st_size - HEADER


# ---- our client on a stock server


def scores(model: Path, tokens: list[int], **options: Any) -> np.ndarray:
    with Llama(str(model), n_ctx=512, logits_all=True, verbose=False, n_threads=2, **options) as llm:
        llm.eval(tokens)
        return np.array(llm.scores[: len(tokens)])


def test_our_client_on_a_stock_server(peer: Peer, smollm2: Path, tokens: list[int], expected: np.ndarray) -> None:
    with peer.rpc_server() as stock:
        got = scores(smollm2, tokens, rpc_servers=stock.endpoint)
        assert_close(expected, got)
        assert stock.count("alloc_buffer") >= 3 and stock.count("graph_compute") >= 1
        assert stock.count("set_tensor") >= 270
        for i, flash_attn in enumerate((True, False), start=1):
            options = {"n_ctx": 512, "verbose": False, "rpc_servers": stock.endpoint, "flash_attn": flash_attn}
            with Llama(str(smollm2), **options) as llm:  # type: ignore[arg-type]
                generated = list(itertools.islice(llm.generate(tokens, temp=0.0, repeat_penalty=1.0), 12))
            assert len(generated) == 12
            assert stock.count("graph_recompute") >= 10 * i


def test_our_client_on_two_stock_servers(peer: Peer, smollm2: Path, tokens: list[int], expected: np.ndarray) -> None:
    with peer.rpc_server(n_threads=1) as one, peer.rpc_server(n_threads=1) as two:
        got = scores(smollm2, tokens, rpc_servers=f"{one.endpoint},{two.endpoint}")
        assert_close(expected, got)
        for stock in (one, two):
            assert stock.count("graph_compute") >= 1 and stock.count("set_tensor") >= 90


def test_our_client_and_a_stock_servers_cache(peer: Peer, smollm2: Path, tokens: list[int], tmp_path: Path) -> None:
    with peer.rpc_server(cache_dir=tmp_path) as stock:
        first = scores(smollm2, tokens, rpc_servers=stock.endpoint)
        (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
        assert file.stat().st_size > 10 * MIB and len(file.name) == 16
        sent = stock.log().count("[set_tensor] buffer:")  # another line tells of the file
        assert (first == scores(smollm2, tokens, rpc_servers=stock.endpoint)).all()
        assert stock.log().count("[set_tensor] buffer:") - sent == sent - 1, "one tensor less"


def test_bit_identical_on_our_own_servers(smollm2: Path, tokens: list[int]) -> None:
    """Local, one server, two servers, threads or not: the same logits to the last bit; few bytes a token."""
    local = scores(smollm2, tokens)
    servers = [Server([CPUDevice()], n_threads=n) for n in (1, 2)]
    with Listener(servers[0], port=0) as one, Listener(servers[1], port=0) as two:
        for spec in (one.endpoint, two.endpoint, f"{one.endpoint},{two.endpoint}"):
            assert (scores(smollm2, tokens, rpc_servers=spec) == local).all(), spec
        assert all(bytes_in(s, C.SET_TENSOR) > WEIGHTS and s.counters.refused == 0 for s in servers)
        with Llama(str(smollm2), n_ctx=512, verbose=False, rpc_servers=one.endpoint) as llm:
            generation = llm.generate(tokens, temp=0.0, repeat_penalty=1.0)
            client = extra_devices("rpc", one.endpoint)[0].client  # type: ignore[attr-defined]
            list(itertools.islice(generation, 4))
            before = client.bytes_sent
            list(itertools.islice(generation, 8))
            assert (client.bytes_sent - before) / 8 < 40_000
