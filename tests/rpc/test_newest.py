"""llama.cpp of protocol 8.0.0 at the other end: its client on our servers, our client on its servers, tensors split over two.

Greedy texts of an F16 file are the same wherever they are computed. Each test reads from the server's counts, or from a
stock server's log, that weights and graphs did cross the wire. 7.0.0 is test_peers.py's and its neighbours'.
"""

import contextlib
import itertools
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from peer import Peer, PeerServer
from programs import Newest
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V7, V8, Command, Protocol
from waiting import until

from pyggml import Llama
from pyggml.backend.cpu import CPUDevice

C = Command
PROMPT = "The first thing that a student of physics learns is"
N = 16
WEIGHTS = 150 << 20  # of the file's 270 MB; the embedding stays with a stock client


@pytest.fixture(scope="module")
def model(peer: Peer, smollm2: Path) -> Path:
    return peer.quantize_model(smollm2, None, "F16")


@pytest.fixture(scope="module")
def text(newest: Newest, model: Path) -> str:
    """What a stock llama.cpp says by itself."""
    made, _ = newest.complete(model, PROMPT, N)
    assert made.startswith(PROMPT) and len(made) > len(PROMPT) + 30
    return made.rstrip()


@contextlib.contextmanager
def our_server(protocol: Protocol = V8) -> Iterator[Listener]:
    """On a port whose thousandth successor is free too: there the ranks meet."""
    while True:
        listener = Listener(Server([CPUDevice()], n_threads=1, protocol=protocol), port=0)
        if listener.address[1] + 1000 < 65536:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", listener.address[1] + 1000)):
                break
        listener.close()
    with listener:
        yield listener


def assert_ours_used(listener: Listener, weights: int, graphs: int = N) -> None:
    counters = listener.server.counters
    assert counters.bytes[C.SET_TENSOR] + counters.bytes[C.SET_TENSOR_2D] > weights
    assert counters.requests[C.ALLOC_BUFFER] >= 3 and counters.requests[C.GRAPH_COMPUTE] >= 1
    assert counters.requests[C.GRAPH_COMPUTE] + counters.requests[C.GRAPH_RECOMPUTE] >= graphs
    assert counters.refused == 0
    until(lambda: listener.server.devices[0].used == 0)  # the client has ended; its session does so a moment later


def assert_theirs_used(stock: PeerServer, graphs: int = N) -> None:
    assert stock.count("alloc_buffer") >= 3 and stock.count("set_tensor") + stock.count("set_tensor_2d") > 100
    assert stock.count("graph_compute") >= 1 and stock.count("graph_compute") + stock.count("graph_recompute") >= graphs


# ---- a stock client on our server


@pytest.mark.parametrize("n_servers", [1, 2])
def test_stock_client_on_our_servers(newest: Newest, model: Path, text: str, n_servers: int) -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(our_server()) for _ in range(n_servers)]
        made, _ = newest.complete(model, PROMPT, N, endpoints=[listener.endpoint for listener in listeners])
        assert made.rstrip() == text
        for listener in listeners:
            assert_ours_used(listener, WEIGHTS // (2 * n_servers))
            assert listener.server.counters.requests[C.GRAPH_RECOMPUTE] >= N - 3


def test_stock_client_on_one_of_ours_and_one_of_theirs(newest: Newest, model: Path, text: str) -> None:
    with our_server() as listener, newest.rpc_server() as stock:
        made, _ = newest.complete(model, PROMPT, N, endpoints=[stock.endpoint, listener.endpoint])
        assert made.rstrip() == text
        assert_ours_used(listener, WEIGHTS // 4)
        assert_theirs_used(stock)


# ---- tensors split over two servers


@pytest.mark.parametrize("who", ["ours and ours", "ours and theirs", "theirs and ours"])
def test_tensors_split_over_two_servers(newest: Newest, model: Path, text: str, who: str) -> None:
    with contextlib.ExitStack() as stack:
        start = {"ours": our_server, "theirs": newest.rpc_server}
        servers: list[Listener | PeerServer] = [stack.enter_context(start[word]()) for word in who.split(" and ")]
        endpoints = [server.endpoint for server in servers]
        made, log = newest.complete(model, PROMPT, 8, "-sm", "tensor", endpoints=endpoints)
        assert text.startswith(made.rstrip()) and len(made) > len(PROMPT) + 15
        assert "failed to initialize" not in log
        for server in servers:
            if isinstance(server, Listener):
                assert_ours_used(server, WEIGHTS // 4, 8 * 30)
                counters = server.server.counters
                assert counters.requests[C.COMM_INIT] == counters.requests[C.COMM_FREE] == 1
                assert counters.requests[C.COMM_ALLREDUCE] >= 8 * 30
                assert counters.requests[C.SET_TENSOR_2D] >= 30 and server.server.devices[0].reserve(None)
            else:
                assert_theirs_used(server, 8 * 30)
                assert server.count("set_tensor_2d") >= 30 and "joined pairwise comm" in server.log()


def test_a_stock_client_adds_up_itself_where_servers_may_not(newest: Newest, model: Path, text: str) -> None:
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(Listener(Server([CPUDevice()], n_threads=1), port=0, comm=["none"])) for _ in range(2)
        ]
        endpoints = [listener.endpoint for listener in listeners]
        made, log = newest.complete(model, PROMPT, 6, "-sm", "tensor", endpoints=endpoints)
        assert text.startswith(made.rstrip()) and len(made) > len(PROMPT) + 8
        assert log.count("failed to initialize") == 2
        for listener in listeners:
            assert_ours_used(listener, WEIGHTS // 4, 6 * 60)
            assert not listener.server.counters.requests[C.COMM_ALLREDUCE]


def test_the_references_own_test_of_two_servers(newest: Newest) -> None:
    with our_server() as one, our_server() as two:
        newest.run("test-rpc-multi-server", one.endpoint, two.endpoint)
        assert one.server.counters.requests[C.GET_ALLOC_SIZE] == 2
        assert one.server.counters.requests[C.ALLOC_BUFFER] == 1
        assert two.server.counters.requests[C.GRAPH_COMPUTE] == 1
        assert one.server.counters.refused == two.server.counters.refused == 0


# ---- our client


def ours(model: Path, endpoints: Sequence[str], n: int = N) -> str:
    with Llama(str(model), n_ctx=512, verbose=False, n_threads=1, rpc_servers=",".join(endpoints)) as llm:
        tokens = llm.tokenize(PROMPT.encode())
        made = list(itertools.islice(llm.generate(tokens, temp=0.0, repeat_penalty=1.0), n))
        return PROMPT + llm.detokenize(made).decode()


def test_our_client_on_stock_servers(newest: Newest, model: Path, text: str) -> None:
    """The server's HELLO says which version it is, and one client may have both."""
    with newest.rpc_server() as one, newest.rpc_server() as two:
        assert ours(model, [one.endpoint]) == text
        assert_theirs_used(one)
        assert one.count("graph_recompute") >= N - 3 and one.count("hello") == 1
        assert ours(model, [one.endpoint, two.endpoint]) == text
        assert_theirs_used(two)


def test_our_client_on_servers_of_both_versions(newest: Newest, peer: Peer, model: Path, text: str) -> None:
    with (
        newest.rpc_server() as eight,
        peer.rpc_server(n_threads=1) as seven,
        our_server(V7) as old,
        our_server() as new,
    ):
        assert ours(model, [eight.endpoint, old.endpoint, seven.endpoint, new.endpoint]) == text
        for stock in (eight, seven):
            assert stock.count("set_tensor") > 30 and stock.count("graph_compute") >= 1
            assert stock.count("graph_recompute") >= N - 3
        for listener in (old, new):
            assert_ours_used(listener, WEIGHTS // 8)
            assert listener.server.counters.requests[C.GRAPH_RECOMPUTE] >= N - 3
