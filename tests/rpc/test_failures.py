"""Our client and a server that is none, is silent, dies or refuses: each failure says who, what and why; an abort ends a wait."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from loopback import Adder, device_of, framed
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.client import hang_up
from pyggml_rpc.errors import RpcError
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import Command

from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError

C = Command


@pytest.mark.parametrize(
    "spec", ["nowhere", ":1", "localhost:", "localhost:x", "localhost:0", "localhost:65536", "", "a:1,"]
)
def test_bad_specs(spec: str) -> None:
    with pytest.raises(RpcError, match=r"RPC server .*: connect: "):
        devices_from_spec(spec)


def test_an_endpoint_twice(listener: Listener) -> None:
    with pytest.raises(RpcError, match="listed twice"):
        devices_from_spec(f"{listener.endpoint},{listener.endpoint}")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(RpcError, match=f"^RPC server {endpoint}: connect: Connection refused$") as caught:
        devices_from_spec(endpoint)
    assert (caught.value.endpoint, caught.value.command) == (endpoint, "connect")


@pytest.fixture
def fake() -> Iterator[Callable[..., str]]:
    """A server of canned bytes: fake(b"...") -> endpoint; it answers each thing it hears with the next piece."""
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(*answers: bytes, close: bool = True) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def serve() -> None:
            conn, _ = listening.accept()
            sockets.append(conn)
            for answer in answers:
                conn.recv(1 << 20)
                conn.sendall(answer)
            if close:
                conn.close()

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return f"127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join(5)
    for sock in sockets:
        sock.close()


HELLO = framed(C.HELLO, major=8)
ONE_DEVICE = framed(C.DEVICE_COUNT, device_count=1)


@pytest.mark.parametrize(
    "answers, reason",
    [
        ([], "HELLO: the server has no place left, or closed at once"),
        (
            [framed(C.HELLO, major=6, minor=1)],
            r"HELLO: the server speaks protocol 6\.1\.0, this client 7\.0\.0 and 8\.0\.0: the server needs",
        ),
        ([framed(C.HELLO, major=7, minor=1)], r"HELLO: the server speaks protocol 7\.1\.0"),
        ([b"HTTP/1.1 400 Bad Request\r\n"], "HELLO: the reply to HELLO has .* bytes, not 28"),
        ([HELLO, framed(C.DEVICE_COUNT)], "DEVICE_COUNT: the server offers no device"),
        ([HELLO], "DEVICE_COUNT: the (server closed the connection|connection broke)"),
        (
            [HELLO, ONE_DEVICE, framed(C.GET_ALIGNMENT, alignment=48), framed(C.GET_MAX_SIZE)],
            "GET_ALIGNMENT: 48 is not a power of two",
        ),
        ([HELLO, ONE_DEVICE + b"!"], "GET_ALIGNMENT: "),
    ],
)
def test_servers_of_another_kind(fake: Callable[..., str], answers: list[bytes], reason: str) -> None:
    endpoint = fake(*answers)
    with pytest.raises(RpcError, match=f"^RPC server {endpoint}: {reason}"):
        devices_from_spec(endpoint)


def test_a_busy_server(fake: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:  # accepts into its queue, and says nothing
        endpoint = f"127.0.0.1:{busy.getsockname()[1]}"
        with pytest.raises(RpcError, match=r"HELLO: no answer within 0.2 s: the server is busy"):
            devices_from_spec(endpoint, hello_timeout=0.2)


def test_at_the_end_nobody_waits_any_longer_for_a_silent_server() -> None:
    found = []
    with socket.create_server(("127.0.0.1", 0)) as busy:
        endpoint = f"127.0.0.1:{busy.getsockname()[1]}"

        def connect() -> None:
            with pytest.raises(RpcError) as caught:
                devices_from_spec(endpoint, hello_timeout=60)
            found.append(str(caught.value))

        connecting = threading.Thread(target=connect)
        connecting.start()
        end = time.monotonic() + 30
        while connecting.is_alive():
            hang_up()
            connecting.join(0.01)
            assert time.monotonic() < end
    assert len(found) == 1 and found[0].startswith(f"RPC server {endpoint}: HELLO: ")


def test_a_silent_server(fake: Callable[..., str]) -> None:
    endpoint = fake(HELLO, close=False)
    with pytest.raises(RpcError, match=r"DEVICE_COUNT: no whole answer within 0.2 s$"):
        devices_from_spec(endpoint, io_timeout=0.2)


def test_a_server_that_dies_is_named(kit: Any, toy: Any) -> None:
    listener = Listener(Server([toy]), port=0)
    device = device_of(listener)
    adder = Adder(device)
    adder.run(1, 2)
    toy.gate.clear()
    toy.entered.clear()
    threading.Thread(target=lambda: (toy.entered.wait(5), listener.close()), daemon=True).start()
    with pytest.raises(RpcError, match=f"RPC server {listener.endpoint}: GET_TENSOR: the server closed") as caught:
        adder.run(3, 4)
    assert "\n" not in str(caught.value)
    with pytest.raises(RpcError, match="the connection has ended"):
        adder.run(3, 4)
    adder.close()  # quietly: all of it went with the server


def test_a_new_connection_after_a_broken_one(kit: Any, toy: Any) -> None:
    first = Listener(Server([toy]), port=0)
    device = device_of(first)
    first.close()
    with pytest.raises(RpcError):
        device.memory()
    with Listener(Server([toy]), port=first.address[1]) as second:
        assert device_of(second).memory()[1] == (1 << 28) - (1 << 24)


def test_a_refusal_shows_at_the_next_answer(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    device = device_of(listener)
    adder = Adder(device)
    adder.out.type = GGMLType.F16
    adder.backend.compute(adder.backend.plan(adder.graph))
    with pytest.raises(RpcError, match=r"GET_TENSOR: the (server closed|connection broke)"):
        adder.backend.synchronize()
    assert "GRAPH_COMPUTE: ADD 'out': result is F16" in caplog.text
    adder.close()


def test_an_interrupted_wait_does_not_shift_answers(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    device = device_of(listener)
    wire = device.client._wire
    assert wire is not None
    receive = wire.receive_into

    def interrupt(space: memoryview, pause: Callable[[], float]) -> int:
        monkeypatch.setattr(wire, "receive_into", receive)
        raise KeyboardInterrupt

    monkeypatch.setattr(wire, "receive_into", interrupt)
    with pytest.raises(KeyboardInterrupt):
        device.memory()
    assert int(device.client.ask(C.DEVICE_COUNT)["device_count"][0]) == 1


def test_an_abort_ends_the_wait_and_keeps_the_connection(listener: Listener, server: Server, toy: Any) -> None:
    adder = Adder(device_of(listener))
    adder.backend.abort()  # nothing is computed: nothing happens
    assert adder.run(1, 2) == 3
    adder.backend.abort()
    assert adder.run(1, 3) == 4
    toy.gate.clear()
    toy.entered.clear()
    adder.backend.compute(adder.plan)
    assert toy.entered.wait(5)
    threading.Timer(0.05, adder.backend.abort).start()
    began = time.monotonic()
    with pytest.raises(ComputeError, match=f"^RPC server {listener.endpoint}: aborted while it computes$"):
        adder.buffer.get(adder.out)
    assert time.monotonic() - began < 5 and toy.inside == 1, "the server computes on"
    adder.buffer.set(adder.a, np.full(4, 7, "<f4").tobytes())
    toy.gate.set()
    assert adder.run(10, 20) == 30, "the answer that nobody waited for is not taken for this one"
    assert server.counters.requests[C.HELLO] == 1
    adder.close()
