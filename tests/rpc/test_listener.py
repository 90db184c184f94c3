"""A listening server among many clients: rude, silent, dead and too many ones; its end, and what it logs."""

import contextlib
import re
import socket
import threading
import time
from typing import Any

import pytest
from loopback import Adder, device_of, framed
from pyggml_rpc import client as client_module
from pyggml_rpc.backend import RpcDevice
from pyggml_rpc.errors import RpcError
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Limits, Listener
from pyggml_rpc.wire import NEWEST, Command, pack_header
from waiting import until

from pyggml.errors import DeviceError

C = Command


def raw(listener: Listener, hello: bool = True) -> socket.socket:
    sock = socket.create_connection(listener.address, 5)
    if hello:
        sock.sendall(pack_header(C.HELLO, 24) + bytes(24))
        major = listener.server.protocol.version.major
        assert sock.recv(36, socket.MSG_WAITALL) == framed(C.HELLO, major=major)
    return sock


def test_silent_and_rude_clients_do_not_hold_up_others(listener: Listener) -> None:
    silent = [raw(listener, hello=False), raw(listener), raw(listener)]
    silent[2].sendall(pack_header(C.SET_TENSOR, 1 << 60)[:5])
    adder = Adder(device_of(listener))
    assert adder.run(1, 2) == 3
    adder.close()
    for sock in silent:
        sock.close()
    until(lambda: listener.n_clients == 0)


def test_a_client_that_vanishes_frees_everything(listener: Listener, server: Server) -> None:
    sock = raw(listener)
    sock.sendall(pack_header(C.ALLOC_BUFFER, 12) + NEWEST.pack(C.ALLOC_BUFFER, device=0, size=4096))
    sock.recv(24, socket.MSG_WAITALL)
    assert server.devices[0].used == 4096
    sock.close()
    until(lambda: server.devices[0].used == 0)


@pytest.mark.skipif(
    not hasattr(__import__("select"), "epoll"), reason="hang-ups during a computation are seen with epoll"
)
def test_a_killed_client_ends_its_computation(listener: Listener, server: Server, toy: Any) -> None:
    adder = Adder(device_of(listener))
    adder.run(1, 2)
    toy.gate.clear()
    toy.entered.clear()
    adder.backend.compute(adder.plan)
    assert toy.entered.wait(5)
    adder.device.client.close()
    until(lambda: listener.n_clients == 0)
    assert server.devices[0].used == 0 and toy.inside == 0
    toy.gate.set()
    other = Adder(device_of(listener))
    assert other.run(2, 2) == 4
    other.close()


@pytest.mark.skipif(
    not hasattr(__import__("select"), "epoll"), reason="hang-ups during a computation are seen with epoll"
)
def test_a_descriptor_that_another_client_has_by_now(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's word that a client hung up may be read when the next one has its descriptor already."""
    adder = Adder(device_of(listener))
    (descriptor,) = listener._clients
    real, told = listener._epoll, threading.Event()

    class Late:
        closed = False

        def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
            if timeout != 0 and not told.is_set():
                told.set()
                return [(descriptor, 0)]
            return real.poll(timeout)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(listener, "_epoll", Late())
    for _ in range(100):  # the first hang-up ends the wait of before; some are seen by the client's own thread alone
        raw(listener).close()
        until(lambda: listener.n_clients == 1)
        if told.wait(0.02):
            break
    assert told.is_set()
    assert adder.run(1, 2) == 3
    adder.close()


def test_two_clients_compute_in_turn(kit: Any) -> None:
    toy = kit.ToyDevice()
    with Listener(Server([toy]), port=0) as listener:
        results: dict[int, list[float]] = {}

        def work(number: int) -> None:
            client = client_module.Client(listener.endpoint, 5, 5, 30)
            adder = Adder(RpcDevice(client, 0, f"RPC{number}"), 1000)
            results[number] = [adder.run(number, i) for i in range(25)]
            adder.close()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results == {n: [float(n + i) for i in range(25)] for n in range(4)}
        assert toy.computed == 100 and toy.most_inside == 1


def test_a_client_that_does_not_read_its_answers(listener: Listener, kit: Any) -> None:
    sock = raw(listener)
    sock.sendall(pack_header(C.ALLOC_BUFFER, 12) + NEWEST.pack(C.ALLOC_BUFFER, device=0, size=1 << 26))
    handle = int.from_bytes(sock.recv(24, socket.MSG_WAITALL)[8:16], "little")
    sock.sendall(pack_header(C.BUFFER_GET_BASE, 8) + handle.to_bytes(8, "little"))
    base = int.from_bytes(sock.recv(16, socket.MSG_WAITALL)[8:], "little")
    record = kit.record((1 << 24,), buffer=handle, data=base)
    body = NEWEST.pack(C.GET_TENSOR, tensor=record, size=1 << 26)
    sock.sendall(pack_header(C.GET_TENSOR, len(body)) + body)
    adder = Adder(device_of(listener))
    assert adder.run(1, 2) == 3
    adder.close()
    sock.close()
    until(lambda: listener.n_clients == 0)


def test_too_many_clients(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with Listener(server, port=0, limits=Limits(max_clients=2)) as listener:
        socks = [raw(listener), raw(listener)]
        with socket.create_connection(listener.address, 5) as third:
            assert third.recv(1) == b""
        until(lambda: "turned away" in caplog.text)
        for sock in socks:
            sock.close()


def test_idle_clients_are_dropped_only_when_asked(server: Server) -> None:
    with Listener(server, port=0, limits=Limits(idle_timeout=0.1)) as listener, raw(listener) as sock:
        assert sock.recv(1) == b""
        assert listener.n_clients == 0 or until(lambda: listener.n_clients == 0) is None


def test_who_does_not_greet_is_dropped(server: Server) -> None:
    limits = Limits(greeting_timeout=0.3)
    with (
        Listener(server, port=0, limits=limits) as listener,
        raw(listener, hello=False) as mute,
        raw(listener) as greeted,
    ):
        assert mute.recv(1) == b""
        time.sleep(0.4)
        greeted.sendall(pack_header(C.DEVICE_COUNT, 0))
        assert greeted.recv(12, socket.MSG_WAITALL) == framed(C.DEVICE_COUNT, device_count=1), (
            "silence after HELLO is normal"
        )


def test_a_hello_in_drops_is_a_hello_that_did_not_come(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Each byte once began the ten seconds anew."""
    with (
        Listener(server, port=0, limits=Limits(greeting_timeout=0.5)) as listener,
        raw(listener, hello=False) as sock,
    ):
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in pack_header(C.HELLO, 24) + bytes(24):
                sock.sendall(bytes([byte]))
                time.sleep(0.05)
        until(lambda: listener.n_clients == 0)
        assert time.monotonic() - began < 1.5
    assert re.search(r"connection closed: no whole HELLO for 0\.\d s", caplog.text)


def test_close_ends_sessions_and_frees_the_port(kit: Any, toy: Any) -> None:
    listener = Listener(Server([toy]), port=0)
    socks = [raw(listener), raw(listener)]
    listener.close()
    listener.close()
    listener.wait()
    for sock in socks:
        assert sock.recv(1) == b""
        sock.close()
    with Listener(Server([toy]), port=listener.address[1]):
        pass


def test_a_port_in_use(listener: Listener, toy: Any) -> None:
    with pytest.raises(DeviceError, match=f"cannot listen on 127.0.0.1:{listener.address[1]}: Address already in use"):
        Listener(Server([toy]), port=listener.address[1])
    with pytest.raises(DeviceError, match="cannot listen on"):
        Listener(Server([toy]), port=70000)
    for host in ("no.such.host.invalid", "a..b", "b" * 64):
        with pytest.raises(DeviceError, match=f"cannot listen on {host}:1: "):
            Listener(Server([toy]), host=host, port=1)


def test_a_fault_of_our_own_ends_one_connection(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pyggml_rpc.graphs.check", lambda node: 1 // 0)
    adder = Adder(device_of(listener))
    with pytest.raises(RpcError):
        adder.run(1, 2)
    monkeypatch.undo()
    assert "a fault of this server" in caplog.text and "ZeroDivisionError" in caplog.text
    adder.close()
    again = Adder(device_of(listener))
    assert again.run(1, 2) == 3
    again.close()


def test_connects_are_debug_lines(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "pyggml.rpc")
    raw(listener, hello=False).close()
    with raw(listener) as sock:
        sock.sendall(pack_header(C.DEVICE_COUNT, 0))
        assert sock.recv(12, socket.MSG_WAITALL)
    until(lambda: listener.n_clients == 0)
    assert {r.levelname for r in caplog.records} == {"DEBUG"}


def test_a_client_of_another_protocol_leaves_a_line(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """It does not say which; but no other one goes without having asked anything."""
    caplog.set_level("INFO", "pyggml.rpc")
    raw(listener).close()
    until(lambda: listener.n_clients == 0)
    (line,) = caplog.messages
    version = listener.server.protocol.version
    assert f": left when it heard that this server speaks protocol {version} (" in line


FEATURES = {"none": bytes(24), "the first": b"\1" + bytes(23), "the last": bytes(23) + b"\x80", "all": b"\xff" * 24}


@pytest.mark.parametrize("features", FEATURES)
def test_features_that_nobody_knows_are_not_agreed_on(listener: Listener, features: str) -> None:
    major = listener.server.protocol.version.major
    with raw(listener, hello=False) as sock, sock.makefile("rb") as stream:
        sock.sendall(pack_header(C.HELLO, 24) + FEATURES[features] + pack_header(C.DEVICE_COUNT, 0))
        assert stream.read(48) == framed(C.HELLO, major=major) + framed(C.DEVICE_COUNT, device_count=1)
