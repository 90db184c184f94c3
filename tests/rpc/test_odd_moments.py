"""Clients that stop at any byte of a session, then are silent, hang up, or break off: others are served meanwhile, and memory,
descriptors and threads come back."""

import contextlib
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest
from mutants import Mutant, assert_caught
from pyggml_rpc.cache import content_hash
from pyggml_rpc.running import Running
from pyggml_rpc.server import Server
from pyggml_rpc.session import Session
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import NEWEST, Command, pack, pack_header
from waiting import until

from pyggml.ops import Op

C = Command
N = 4096  # elements of a tensor
FAR_TOO_MANY = 1 << 26  # bytes of answers, more than any socket holds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class StoppedError(Exception):
    """So many bytes were sent."""


class Raw:
    """A client that sends `budget` bytes and no more. `made`: the sockets of all."""

    made: ClassVar[list[socket.socket]] = []

    def __init__(self, address: tuple[str, int], budget: int) -> None:
        self.sock = socket.create_connection(address, 10)
        self.made.append(self.sock)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.left = self.budget = budget

    def send(self, command: Command, body: bytes, data: bytes = b"") -> None:
        whole = pack_header(command, len(body) + len(data)) + body + data
        self.sock.sendall(whole[: self.left])
        self.left -= len(whole)
        if self.left <= 0:
            raise StoppedError

    def receive(self) -> bytes:
        return self._exactly(int.from_bytes(self._exactly(8), "little"))

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            part = self.sock.recv(count - len(got))
            assert part, "the server hung up"
            got += part
        return got

    def ask(self, command: Command, **fields: Any) -> bytes:
        self.send(command, NEWEST.pack(command, **fields))
        return self.receive()

    def tell(self, command: Command, data: bytes = b"", **fields: Any) -> None:
        self.send(command, NEWEST.pack(command, **fields), data)


def session(kit: Any, client: Raw, n_devices: int) -> None:
    """A bit of everything, on every device; checks what is computed."""
    client.send(C.HELLO, bytes(24))
    client.receive()
    assert client.ask(C.DEVICE_COUNT) == n_devices.to_bytes(4, "little")
    a, homes = np.arange(N, dtype="<f4"), list[tuple[int, int]]()
    for device in range(n_devices):  # all at first, so that threads compute for who has memory of several
        client.ask(C.GET_DEVICE_MEMORY, device=device)
        (handle,) = struct.unpack_from("<Q", client.ask(C.ALLOC_BUFFER, device=device, size=16 * N))
        (base,) = struct.unpack("<Q", client.ask(C.BUFFER_GET_BASE, remote_ptr=handle))
        homes.append((handle, base))
    for device, (handle, base) in enumerate(homes):
        home = {"buffer": handle}
        x = kit.record((N,), **home, id=1, data=base)
        y = kit.record((N,), **home, id=2, data=base + 4 * N)
        z = kit.record((N,), **home, id=3, data=base + 8 * N, op=Op.ADD, flags=16, src=[1, 2, *[0] * 8])
        client.ask(C.GET_ALLOC_SIZE, device=device, tensor=x)
        client.tell(C.INIT_TENSOR, tensor=x)
        client.ask(C.SET_TENSOR_HASH, tensor=x, hash=content_hash(a.tobytes()))
        client.tell(C.SET_TENSOR, a.tobytes(), tensor=x, cache_flag=1)
        client.tell(C.SET_TENSOR_2D, a.tobytes(), tensor=y, size=N, n_copies=4, stride=N)
        client.send(C.GRAPH_COMPUTE, kit.graph_body([3], [x, y, z], device, NEWEST, uid=5 + device))
        assert client.ask(C.GET_TENSOR, tensor=z, size=4 * N) == (a + a).tobytes()
        client.tell(C.MEMSET_TENSOR, tensor=y, size=4 * N, value=0)
        client.tell(C.GRAPH_RECOMPUTE, device=device, uid=5 + device)
        assert client.ask(C.GET_TENSOR_2D, tensor=z, size=N, n_copies=4, stride=N) == a.tobytes()
        assert client.ask(C.COPY_TENSOR, src=x, dst=y) == b"\1"
        client.tell(C.BUFFER_CLEAR, remote_ptr=handle, value=1)
    for handle, _ in homes:
        client.tell(C.FREE_BUFFER, remote_ptr=handle)


def end(sock: socket.socket, how: str) -> None:
    if how == "breaks off":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


Held: TypeAlias = tuple[Listener, Callable[[], None]]
"""A server, and what waits until nobody has anything of it any more."""


@contextlib.contextmanager
def serving(kit: Any, n_devices: int, seconds: float = 30.0) -> Iterator[Held]:
    toys = [kit.ToyDevice(host=False), kit.ToyDevice()][:n_devices]
    with Listener(Server(toys), port=0) as listener:
        files, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
        session(kit, raw := Raw(listener.address, 1 << 30), len(toys))
        raw.sock.close()

        def all_back() -> None:
            until(lambda: listener.n_clients == 0, seconds)
            until(lambda: not set(threading.enumerate()) - threads, seconds)
            assert len(os.listdir("/proc/self/fd")) <= files
            server = listener.server
            assert [served.used for served in server.devices] == [0] * len(toys) and server.host.held == 0
            assert server._buffers == 0

        try:
            all_back()
            yield listener, all_back
        finally:
            for toy in toys:
                toy.gate.set()
            for sock in Raw.made:
                sock.close()
            Raw.made.clear()


@pytest.fixture(params=["one device", "two devices"])
def held(request: pytest.FixtureRequest, kit: Any) -> Iterator[Held]:
    with serving(kit, 1 + (request.param == "two devices")) as made:
        yield made


@pytest.mark.parametrize("how", ["hangs up", "breaks off"])
def test_any_byte_may_be_the_last(kit: Any, held: Held, how: str, n: int = 40) -> None:
    listener, all_back = held
    n_devices = len(listener.server.devices)
    session(kit, whole := Raw(listener.address, 1 << 30), n_devices)
    total = whole.budget - whole.left
    whole.sock.close()
    rng = random.Random(n)
    silent: list[Raw] = []
    for i in range(n):
        client = Raw(listener.address, rng.choice((rng.randint(1, total), rng.randint(1, 400))))
        silent.append(client)
        with pytest.raises(StoppedError):
            session(kit, client, n_devices)
        if i % 8 == 7:  # who is silent keeps nobody waiting
            session(kit, other := Raw(listener.address, 1 << 30), n_devices)
            other.sock.close()
            for client in silent:
                end(client.sock, how)
            silent.clear()
            all_back()
    assert listener.server.counters.refused == 0


def test_answers_that_nobody_reads(kit: Any, held: Held) -> None:
    listener, all_back = held
    n_devices = len(listener.server.devices)
    for how in ("hangs up", "breaks off"):
        client = Raw(listener.address, 1 << 30)
        client.send(C.HELLO, bytes(24))
        client.receive()
        (handle,) = struct.unpack_from("<Q", client.ask(C.ALLOC_BUFFER, device=0, size=FAR_TOO_MANY))
        (base,) = struct.unpack("<Q", client.ask(C.BUFFER_GET_BASE, remote_ptr=handle))
        tensor = kit.record((FAR_TOO_MANY // 4,), buffer=handle, data=base)
        client.tell(C.GET_TENSOR, tensor=tensor, size=FAR_TOO_MANY)
        client.sock.setblocking(False)
        small = pack_header(C.DEVICE_COUNT, 0) * 1000
        with contextlib.suppress(BlockingIOError):
            for _ in range(1000):
                client.sock.send(small)
        session(kit, other := Raw(listener.address, 1 << 30), n_devices)
        other.sock.close()
        end(client.sock, how)
        all_back()


def test_gone_inside_a_graph(kit: Any, held: Held) -> None:
    listener, all_back = held
    toy = listener.server.devices[-1].device
    assert isinstance(toy, kit.ToyDevice)
    for how in ("hangs up", "breaks off"):
        toy.gate.clear()
        toy.entered.clear()
        client = Raw(listener.address, 1 << 30)
        thread = threading.Thread(target=_computes, args=(kit, client, len(listener.server.devices)))
        thread.start()
        assert toy.entered.wait(10)
        client.sock.send(pack_header(C.DEVICE_COUNT, 0)[:4])  # and half of the next request
        client.sock.shutdown(socket.SHUT_RD)
        end(client.sock, how)
        all_back()
        toy.gate.set()
        thread.join(10)
        session(kit, other := Raw(listener.address, 1 << 30), len(listener.server.devices))
        other.sock.close()
        all_back()


def _computes(kit: Any, client: Raw, n_devices: int) -> None:
    with contextlib.suppress(OSError, AssertionError):  # it is gone
        session(kit, client, n_devices)


def test_gone_while_another_server_is_waited_for(kit: Any, held: Held) -> None:
    listener, all_back = held
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for rank in (0, 1):
        client = Raw(listener.address, 1 << 30)
        client.send(C.HELLO, bytes(24))
        client.receive()
        host = pack(NEWEST[C.COMM_INIT].request, device=0, rank=rank, world=2, port=port, host=b"127.0.0.1")
        client.send(C.COMM_INIT, host)
        until(lambda: listener.server.devices[0]._communicating is not None)
        began = time.monotonic()
        client.sock.close()
        all_back()
        assert listener.server.devices[0]._communicating is None and time.monotonic() - began < 2


def some_bytes(kit: Any, made: Held) -> None:
    test_any_byte_may_be_the_last(kit, made, "hangs up", 8)


MUTANTS: dict[str, tuple[Mutant, Callable[..., None]]] = {
    "accounts stay open": ((Session, "close", "stack.callback(account.close)", "pass"), some_bytes),
    "buffers stay": ((Session, "close", "stack.callback(self.buffers.close)", "pass"), some_bytes),
    "sockets stay open": ((Listener, "_forget", "client.sock.close()", "kept.append(client.sock)"), some_bytes),
    "threads stay": ((Running, "close", "worker.end()", "pass"), some_bytes),
    "nobody watches": ((Listener, "_watch", "client.session.abort()", "pass"), test_gone_inside_a_graph),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(kit: Any, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    wrong, test = MUTANTS[mutant]
    kept: list[socket.socket] = []
    monkeypatch.setattr("pyggml_rpc.transport.kept", kept, raising=False)

    def inside(kit: Any) -> None:
        with serving(kit, 2, seconds=0.5) as made:
            test(kit, made)

    assert_caught(monkeypatch, wrong, inside, kit=kit)
    for sock in kept:
        sock.close()
