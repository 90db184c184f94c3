"""Our client on our server over real sockets."""

import contextlib
import gc
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pyggml_rpc import client as client_module
from pyggml_rpc.backend import HASH_ABOVE, RpcDevice, devices_from_spec
from pyggml_rpc.cache import WeightCache
from pyggml_rpc.errors import RpcError
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Limits, Listener
from pyggml_rpc.wire import NEWEST, V7, V8, Command, pack, pack_header
from waiting import until

from pyggml import ops
from pyggml.backend.base import Usage, extra_devices
from pyggml.backend.host import host_memory
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, DeviceError, UnsupportedError
from pyggml.graph import Graph, build_forward
from pyggml.tensor import Tensor

C = Command


@pytest.fixture
def listener(server: Server) -> Iterator[Listener]:
    with Listener(server, port=0) as listener:
        yield listener


def device_of(listener: Listener, **options: Any) -> RpcDevice:
    (device,) = devices_from_spec(listener.endpoint, **options)
    assert isinstance(device, RpcDevice)
    return device


class Adder:
    """out = a + b on an RPC device, ready to run."""

    def __init__(self, device: RpcDevice, n: int = 4) -> None:
        self.device = device
        self.a, self.b = (Tensor(GGMLType.F32, (n,), name=name) for name in "ab")
        self.out = ops.add(self.a, self.b, name="out")
        self.buffer = device.alloc_buffer(3 * 4 * n + 128, Usage.COMPUTE)
        for i, tensor in enumerate((self.a, self.b, self.out)):
            self.buffer.place(tensor, i * (4 * n + 63) // 64 * 64)
        self.backend = device.open()
        self.graph = build_forward([self.out])
        self.plan = self.backend.plan(self.graph)

    def run(self, a: float, b: float) -> float:
        n = self.a.ne[0]
        self.buffer.set(self.a, np.full(n, a, "<f4").tobytes())
        self.buffer.set(self.b, np.full(n, b, "<f4").tobytes())
        self.backend.compute(self.plan)
        values = np.frombuffer(self.buffer.get(self.out), "<f4")
        assert values.size == n and (values == values[0]).all()
        return float(values[0])

    def close(self) -> None:
        self.backend.close()
        self.buffer.free()


# ---- the ordinary way


def test_devices_are_found_through_the_entry_point(listener: Listener) -> None:
    (device,) = extra_devices("rpc", listener.endpoint)
    assert isinstance(device, RpcDevice)
    assert (device.name, device.description) == ("RPC0", listener.endpoint)
    offered = (1 << 28) - (1 << 24)
    assert device.memory() == (int(0.9 * offered), offered)
    assert device.alignment == 64


def test_compute(listener: Listener, server: Server, toy: Any) -> None:
    adder = Adder(device_of(listener))
    assert adder.run(1, 2) == 3
    assert adder.run(10, 20) == 30
    assert toy.computed == 2
    assert server.counters.requests[C.GRAPH_COMPUTE] == 1
    assert server.counters.requests[C.GRAPH_RECOMPUTE] == 1
    assert server.counters.bytes[C.SET_TENSOR] == 64
    adder.close()


def test_a_run_costs_few_bytes_and_one_round_trip(listener: Listener, server: Server) -> None:
    adder = Adder(device_of(listener))
    adder.run(1, 2)
    recompute = {V7: 13, V8: 21}[server.protocol]
    before, asked = adder.device.client.bytes_sent, dict(adder.device.client.requests)
    adder.run(3, 4)
    assert adder.device.client.bytes_sent - before == 2 * (9 + 305 + 16) + recompute + 9 + 312
    made = {c.name for c in C if adder.device.client.requests[c] != asked[c]}
    assert made == {"SET_TENSOR", "GRAPH_RECOMPUTE", "GET_TENSOR"}
    adder.close()


def test_the_whole_graph_again_after_any_free(listener: Listener, server: Server) -> None:
    adder = Adder(device_of(listener))
    other = adder.device.alloc_buffer(64)
    adder.run(1, 2)
    other.free()
    assert adder.run(1, 5) == 6
    assert server.counters.requests[C.GRAPH_COMPUTE] == 2
    assert server.counters.requests[C.GRAPH_RECOMPUTE] == 0
    adder.close()


def test_two_plans_take_turns(listener: Listener, server: Server) -> None:
    device = device_of(listener)
    one, two = Adder(device), Adder(device)
    assert [one.run(1, 2), two.run(3, 4), one.run(5, 6), one.run(7, 8)] == [3, 7, 11, 15]
    assert server.counters.requests[C.GRAPH_COMPUTE] == {V7: 3, V8: 2}[server.protocol]
    one.close(), two.close()


def test_more_graphs_than_are_kept(listener: Listener, server: Server) -> None:
    """1,025 plans: both sides forget all at the same point, and the first is sent whole again."""
    device = device_of(listener)
    adder = Adder(device)
    plans = [adder.plan, *(adder.backend.plan(adder.graph) for _ in range(1024))]
    adder.buffer.set(adder.a, np.full(4, 1, "<f4").tobytes())
    adder.buffer.set(adder.b, np.full(4, 2, "<f4").tobytes())
    for plan in (*plans[:1024], *plans[:1024:100], plans[1024], plans[0], plans[1024], plans[0]):
        adder.backend.compute(plan)
    assert np.frombuffer(adder.buffer.get(adder.out), "<f4").tolist() == [3.0] * 4
    kept = {V7: 0, V8: 11 + 2}[server.protocol]
    assert server.counters.requests[C.GRAPH_RECOMPUTE] == kept
    assert server.counters.requests[C.GRAPH_COMPUTE] == 1024 + 11 + 4 - kept
    adder.close()


def test_graphs_that_a_free_took_are_counted(listener: Listener, server: Server) -> None:
    """A stock server keeps their uids: whoever did not count them would ask for a graph that is forgotten."""
    device = device_of(listener)
    adder, other = Adder(device), device.alloc_buffer(64)
    plans = [adder.backend.plan(adder.graph) for _ in range(1024)]
    for plan in plans:
        adder.backend.compute(plan)
    other.free()
    more = [adder.backend.plan(adder.graph) for _ in range(3)]
    for plan in (plans[0], *more, *more):  # the first of them empties the set
        adder.backend.compute(plan)
    adder.backend.synchronize()
    assert server.counters.requests[C.GRAPH_RECOMPUTE] == {V7: 0, V8: 3}[server.protocol]
    assert server.counters.refused == 0
    adder.close()


def test_buffer_operations(listener: Listener) -> None:
    device = device_of(listener)
    buffer, other = device.alloc_buffer(1 << 20), device.alloc_buffer(1 << 10)
    big, small = Tensor(GGMLType.I8, (1 << 20,)), Tensor(GGMLType.I8, (64,))
    buffer.place(big, 0)
    other.place(small, 128)
    data = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
    buffer.set(big, data)
    assert buffer.get(big) == data.tobytes()
    assert buffer.get(big, 1000, 10) == data[1000:1010].tobytes()
    assert buffer.get(big, 5, 0) == b""
    buffer.memset(big, 7, 10, 5)
    assert buffer.get(big, 9, 7) == bytes([data[9]]) + b"\7" * 5 + bytes([data[15]])
    other.set(small, b"\1" * 64)
    assert buffer.copy(small, big)
    assert buffer.get(big, 0, 65) == b"\1" * 64 + bytes([data[64]])
    buffer.clear(9)
    assert set(buffer.get(big)) == {9}
    elsewhere = Tensor(GGMLType.I8, (64,))
    assert not buffer.copy(elsewhere, big)
    buffer.free(), other.free()
    buffer.free()


def test_data_may_change_after_set(listener: Listener) -> None:
    device = device_of(listener)
    buffer = device.alloc_buffer(64)
    tensor = Tensor(GGMLType.I8, (64,))
    buffer.place(tensor, 0)
    data = np.zeros(64, np.uint8)
    buffer.set(tensor, data)
    data[:] = 1
    assert buffer.get(tensor) == bytes(64)
    buffer.free()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, "<f4").reshape(2, 2)])
def test_data_of_any_kind(listener: Listener, kind: Callable[[bytes], Any]) -> None:
    device = device_of(listener)
    buffer = device.alloc_buffer(64)
    tensor, nothing = Tensor(GGMLType.F32, (2, 2)), Tensor(GGMLType.F32, (2, 0))
    buffer.place(tensor, 0)
    buffer.place(nothing, 64)
    buffer.set(tensor, kind(bytes(range(16))))
    assert buffer.get(tensor) == bytes(range(16))
    buffer.set(nothing, b"")
    assert buffer.get(nothing) == b""
    buffer.free()


def test_a_server_that_does_not_tell_its_memory(listener: Listener, toy: Any) -> None:
    device = device_of(listener)
    toy.total = 0
    assert device.memory()[1] == host_memory()[1] > 0


def test_no_room(listener: Listener) -> None:
    with pytest.raises(DeviceError, match=f"RPC0 .{listener.endpoint}.: no room for a buffer of 1099511627776 bytes"):
        device_of(listener).alloc_buffer(1 << 40)


def test_alloc_size_is_asked_once_for_each_shape(listener: Listener, server: Server) -> None:
    device = device_of(listener)
    product = ops.mul_mat(Tensor(GGMLType.F32, (64, 8)), Tensor(GGMLType.F32, (64, 3)))
    for _ in range(3):
        assert device.alloc_size(product) == product.nbytes
        assert device.alloc_size(Tensor(GGMLType.Q4_0, (576, 4))) == 576 // 32 * 18 * 4
    assert device.alloc_size(Tensor(GGMLType.F32, (576, 4))) == 576 * 16
    assert server.counters.requests[C.GET_ALLOC_SIZE] == 2


def test_alloc_size_tells_the_sources_in_their_places(
    listener: Listener, server: Server, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may need room for what it makes of a source: the same result of other sources is another question."""
    asked: list[tuple[Any, ...]] = []

    def alloc_size(tensor: Tensor) -> int:
        asked.append(tuple(None if s is None else (s.type, s.ne) for s in tensor.src))
        return tensor.nbytes + 100 * len(asked)

    monkeypatch.setattr(toy, "alloc_size", alloc_size)
    device = device_of(listener)
    x, w = Tensor(GGMLType.F32, (64, 3)), Tensor(GGMLType.F32, (64, 8))
    product, other = ops.mul_mat(w, x), ops.mul_mat(Tensor(GGMLType.F16, (64, 8)), x)
    assert [device.alloc_size(t) - t.nbytes for t in (product, other, product, other)] == [100, 200, 100, 200]
    product.src = (w, None, x, None)
    assert device.alloc_size(product) == product.nbytes + 300
    assert asked[1:] == [((GGMLType.F16, w.ne), (GGMLType.F32, x.ne)), ((w.type, w.ne), None, (x.type, x.ne))]


def test_ops_that_cannot_be_sent(listener: Listener) -> None:
    device = device_of(listener)
    custom = Tensor(GGMLType.F32, (4,), op=ops.Op.CUSTOM)
    assert not device.supports_op(custom)
    with pytest.raises(UnsupportedError, match="CUSTOM cannot be sent"):
        device.open().plan(Graph([custom]))


# ---- one connection


def test_one_connection_for_an_endpoint(listener: Listener, server: Server) -> None:
    one, two = device_of(listener), device_of(listener)
    assert one.client is two.client and listener.n_clients == 1
    assert server.counters.requests[C.HELLO] == 1


def test_the_last_user_leaves_and_the_next_comes_back(listener: Listener, server: Server) -> None:
    device = device_of(listener)
    adder = Adder(device)
    adder.close()
    until(lambda: listener.n_clients == 0)
    assert server.slots[0].used == 0
    again = Adder(device)
    assert again.run(1, 1) == 2
    again.close()


def test_a_forgotten_client_leaves(listener: Listener) -> None:
    device = device_of(listener)
    assert listener.n_clients == 1
    del device
    gc.collect()
    until(lambda: listener.n_clients == 0)


def test_several_servers_and_devices(kit: Any) -> None:
    with (
        Listener(Server([kit.ToyDevice(), kit.ToyDevice()]), port=0) as first,
        Listener(Server([kit.ToyDevice()]), port=0) as second,
    ):
        devices = devices_from_spec(f"{first.endpoint}, {second.endpoint}")
        assert [d.name for d in devices] == ["RPC0", "RPC1", "RPC2"]
        adders = [Adder(d) for d in devices if isinstance(d, RpcDevice)]
        assert [a.run(i, 1) for i, a in enumerate(adders)] == [1, 2, 3]
        assert adders[0].device.client is adders[1].device.client is not adders[2].device.client
        assert not adders[2].buffer.copy(adders[0].a, adders[2].a), "not through two servers"
        for adder in adders:
            adder.close()


# ---- weights


def test_large_weights_are_asked_for_by_hash(kit: Any, tmp_path: Any) -> None:
    server = Server([kit.ToyDevice()], cache=WeightCache(tmp_path))
    data = np.random.default_rng(1).integers(0, 256, HASH_ABOVE + 8, np.uint8)
    tensor = Tensor(GGMLType.I8, (data.size,))
    with Listener(server, port=0) as listener:
        for sent, usage in ((1, Usage.WEIGHTS), (1, Usage.WEIGHTS), (2, Usage.COMPUTE)):
            buffer = device_of(listener).alloc_buffer(data.size, usage)
            buffer.place(tensor, 0)
            buffer.set(tensor, data)
            assert buffer.get(tensor) == data.tobytes()
            assert server.counters.requests[C.SET_TENSOR] == sent
            buffer.free()
        assert server.counters.requests[C.SET_TENSOR_HASH] == 2
        buffer = device_of(listener, hash_weights=False).alloc_buffer(data.size, Usage.WEIGHTS)
        buffer.place(tensor, 0)
        buffer.set(tensor, data)
        assert server.counters.requests[C.SET_TENSOR_HASH] == 2
        buffer.free()


def test_small_weights_are_sent(kit: Any, tmp_path: Any) -> None:
    server = Server([kit.ToyDevice()], cache=WeightCache(tmp_path))
    with Listener(server, port=0) as listener:
        buffer = device_of(listener).alloc_buffer(HASH_ABOVE, Usage.WEIGHTS)
        tensor = Tensor(GGMLType.I8, (HASH_ABOVE,))
        buffer.place(tensor, 0)
        buffer.set(tensor, np.zeros(HASH_ABOVE, np.uint8))
        assert buffer.get(tensor, 0, 1) == b"\0"
        assert server.counters.requests[C.SET_TENSOR_HASH] == 0
        buffer.free()


# ---- failures have names


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


def framed(command: Command, **fields: Any) -> bytes:
    layout = NEWEST[command].reply
    assert layout is not None
    return layout.itemsize.to_bytes(8, "little") + pack(layout, **fields)


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
            "GET_ALIGNMENT: 48 is no power of two",
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


# ---- the server among many clients


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
    assert server.slots[0].used == 4096
    sock.close()
    until(lambda: server.slots[0].used == 0)


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
    assert server.slots[0].used == 0 and toy.inside == 0
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
        assert greeted.recv(12, socket.MSG_WAITALL) == ONE_DEVICE, "silence after HELLO is normal"


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
    with pytest.raises(DeviceError, match=r"cannot listen on no.such.host.invalid:1"):
        Listener(Server([toy]), host="no.such.host.invalid", port=1)


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
    raw(listener).close()
    until(lambda: listener.n_clients == 0)
    assert {r.levelname for r in caplog.records} == {"DEBUG"}
