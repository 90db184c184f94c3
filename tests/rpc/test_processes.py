"""Real processes and a real model: servers and clients that are killed, and several clients at once."""

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer import Peer
from pyggml_rpc.errors import RpcError
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V7, Command
from waiting import until

from pyggml import Llama
from pyggml.backend.cpu import CPUDevice

PROMPT = b"The first thing that a student of physics learns is"


@pytest.fixture
def process() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """(the server's process, its endpoint)"""
    command = [sys.executable, "-m", "pyggml_cli.rpc_server", "-p", "0", "-t", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "endpoint" in line)
        yield server, line.split(":", 1)[1].strip()
        server.kill()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server([CPUDevice()], n_threads=2, protocol=V7)
    yield server
    server.close()


def open_model(model: Path, endpoint: str | None, **options: int) -> Llama:
    return Llama(str(model), n_ctx=512, verbose=False, n_threads=1, rpc_servers=endpoint, **options)  # type: ignore[arg-type]


def start(llm: Llama, prompt: bytes = PROMPT) -> Iterator[int]:
    return iter(llm.generate(llm.tokenize(prompt), temp=0.0, repeat_penalty=1.0))


def text_of(model: Path, endpoint: str | None, n: int, prompt: bytes = PROMPT) -> list[int]:
    with open_model(model, endpoint) as llm:
        return list(itertools.islice(start(llm, prompt), n))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_in_the_middle(
    smollm2: Path, process: tuple["subprocess.Popen[str]", str], how: signal.Signals
) -> None:
    server, endpoint = process
    with open_model(smollm2, endpoint) as llm:
        tokens = start(llm)
        list(itertools.islice(tokens, 3))
        threading.Timer(0.3, server.send_signal, [how]).start()
        began = time.monotonic()
        with pytest.raises(RpcError, match=rf"^RPC server {endpoint}: [A-Z_]+: .*$") as caught:
            list(itertools.islice(tokens, 100_000))
        assert "\n" not in str(caught.value) and time.monotonic() - began < 20
    assert server.wait(10) == (0 if how == signal.SIGTERM else -signal.SIGKILL)


CLIENT = """
import itertools, sys
from pyggml import Llama
llm = Llama(sys.argv[1], n_ctx=2048, verbose=False, n_threads=1, rpc_servers=sys.argv[2])
for token in llm.generate(llm.tokenize(b"Hello"), temp=0.0, repeat_penalty=1.0):
    print(token, flush=True)
"""


def test_a_client_that_is_killed_leaves_nothing(smollm2: Path, listener: Listener) -> None:
    served = listener.server.devices[0]
    command = [sys.executable, "-c", CLIENT, str(smollm2), listener.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        for _ in range(3):
            assert client.stdout.readline()
        assert served.used > 90 << 20
        client.kill()
    until(lambda: served.used == 0 and listener.n_clients == 0)
    assert text_of(smollm2, listener.endpoint, 4) == text_of(smollm2, None, 4)


def test_clients_at_once_do_not_mix(smollm2: Path, listener: Listener, peer: Peer) -> None:
    """Ours, another of ours in a process of its own, and a stock one, all generating at the same time."""
    alone = text_of(smollm2, None, 24)
    stock_alone = peer.rpc_generate([listener.endpoint], smollm2, PROMPT.decode(), 16)["tokens"]
    script = CLIENT.replace('b"Hello"', repr(PROMPT))
    command = [sys.executable, "-c", script, str(smollm2), listener.endpoint]
    results: dict[str, list[int]] = {}

    def stock() -> None:
        results["stock"] = peer.rpc_generate([listener.endpoint], smollm2, PROMPT.decode(), 16)["tokens"]

    thread = threading.Thread(target=stock)
    thread.start()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        results["other"] = [int(client.stdout.readline())]
        most = listener.n_clients
        results["ours"] = text_of(smollm2, listener.endpoint, 24)
        results["other"] += [int(client.stdout.readline()) for _ in range(23)]
        client.kill()
    thread.join(60)
    assert results == {"ours": alone, "other": alone, "stock": stock_alone}
    counters = listener.server.counters
    assert most >= 1 and counters.refused == 0
    assert counters.bytes[Command.SET_TENSOR] > 4 * 90 << 20  # each client's weights, the first one's too
    assert counters.requests[Command.GRAPH_COMPUTE] + counters.requests[Command.GRAPH_RECOMPUTE] >= 2 * 24 + 2 * 15


def test_two_models_share_an_endpoint(smollm2: Path, listener: Listener) -> None:
    """One connection, two contexts that take turns, and each closes without the other noticing."""
    alone = [text_of(smollm2, None, 8, prompt) for prompt in (PROMPT, b"Hello, my name is")]
    one, two = open_model(smollm2, listener.endpoint), open_model(smollm2, listener.endpoint)
    first, second = start(one), start(two, b"Hello, my name is")
    turns = [(next(first), next(second)) for _ in range(7)]
    assert listener.n_clients == 1
    one.close()
    assert [b for _, b in turns] + [next(second)] == alone[1]
    assert [a for a, _ in turns] == alone[0][:7]
    two.close()
    until(lambda: listener.n_clients == 0)
    assert listener.server.devices[0].used == 0
    assert listener.server.counters.requests[Command.HELLO] == 1
