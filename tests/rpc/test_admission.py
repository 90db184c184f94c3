"""Places for clients: who is turned away, who makes room, what the log says of it, and addresses of both kinds."""

import logging
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyggml_rpc.addresses import bare_host, is_local, join_endpoint, owner_of, split_endpoint
from pyggml_rpc.admission import EMPTY_SILENCE, SILENCE, Admitted, FullError, make_room
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.client import Client
from pyggml_rpc.errors import RpcError
from pyggml_rpc.logs import LimitRate, mib
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Limits, Listener
from pyggml_rpc.wire import NEWEST, Command, pack_header
from waiting import until

from pyggml.backend.base import Kind
from pyggml.errors import ComputeError
from pyggml.ops import Op

C = Command


# ---- the decision


def place(owner: str | None = None, silent: float = 0.0, **more: bool) -> Admitted:
    return Admitted(owner, 1000.0 - silent, **more)


def leaver(places: list[Admitted], owner: str | None = None, most: int = 3, of_one: int = 2) -> Admitted | None:
    return make_room(places, owner, 1000.0, most, of_one)


def test_where_there_is_room_nobody_leaves() -> None:
    assert leaver([place(silent=99), place(silent=99)]) is None
    assert leaver([place(silent=99, leaving=True)] * 5) is None, "they are leaving already"


def test_the_oldest_silent_one_makes_room() -> None:
    old, older = place(silent=EMPTY_SILENCE + 1), place(silent=EMPTY_SILENCE + 2)
    assert leaver([place(), old, older]) is older


def test_memory_gives_longer_silence() -> None:
    patient, empty = place(silent=SILENCE + 50, holds_memory=True), place(silent=EMPTY_SILENCE + 1)
    assert leaver([patient, empty, place()]) is empty
    assert leaver([patient, place(), place()]) is patient
    with pytest.raises(FullError, match=r"^3 clients are there$"):
        leaver([place(silent=SILENCE - 1, holds_memory=True), place(), place(silent=EMPTY_SILENCE / 2)])


def test_who_is_computed_for_is_not_silent() -> None:
    with pytest.raises(FullError):
        leaver([place(silent=9999, busy=True)] * 3)


def test_an_address_has_so_many_places() -> None:
    ours = [place("a", silent=1), place("a", silent=1)]
    with pytest.raises(FullError, match=r"^2 clients of its address are there$"):
        leaver(ours, "a")
    assert leaver(ours, "b") is None
    assert leaver([place("a", silent=5), place("b", silent=99), place("a", silent=9)], "a") is not None
    assert leaver([place("a", silent=5), place("b", silent=99), place("a", silent=9)], "a", most=9).owner == "a"  # type: ignore[union-attr]
    assert leaver([place(None), place(None)], None) is None, "this machine's own are no one client"


# ---- addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:1", "localhost", 1),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[::1]:50052", "::1", 50052),
        ("[fe80::1%eth0]:7", "fe80::1%eth0", 7),
    ],
)
def test_endpoints(text: str, host: str, port: int) -> None:
    assert split_endpoint(text) == (host, port)
    assert join_endpoint(host, port) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("::1:50052", r"write an IPv6 address in brackets: \[::1\]:PORT"),
        ("fe80::1:50052", r"in brackets: \[fe80::1\]:PORT"),
        ("[::1", "has a '\\[' and no '\\]'"),
        ("[::1]", "is not host:port"),
        ("[::1]50052", "is not host:port"),
        ("[]:1", "is not host:port"),
        ("[::1]:0", "'0' is not a port number"),
        ("a:1:2", "'1:2' is not a port number"),
        ("a:٣", "is not a port number"),
    ],
)
def test_bad_endpoints(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        split_endpoint(text)
    with pytest.raises(RpcError, match="connect: "):
        devices_from_spec(text)


def test_who_is_one_client() -> None:
    assert owner_of("127.0.0.1") is owner_of("127.8.8.8") is owner_of("::1") is owner_of("::ffff:127.0.0.1") is None
    assert owner_of("10.0.0.1") == owner_of("::ffff:10.0.0.1") != owner_of("10.0.0.2")
    assert owner_of("2001:db8::1") == owner_of("2001:db8::ffff:1") != owner_of("2001:db8:0:1::1")
    assert owner_of("fe80::1%eth0") == owner_of("fe80::2%eth0")
    assert (bare_host("[::1]"), bare_host("::1"), bare_host("a.b")) == ("::1", "::1", "a.b")
    assert [is_local(h) for h in ("127.0.0.1", "::1", "0.0.0.0", "::", "10.0.0.1", "")] == [True, True] + [False] * 4


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_ipv6(server: Server, host: str) -> None:
    """What the server prints can be pasted into --rpc."""
    try:
        listener = Listener(server, host, 0)
    except Exception as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with listener:
        assert listener.endpoint == f"[{bare_host(host)}]:{listener.address[1]}"
        (device,) = devices_from_spec(listener.endpoint)
        assert device.memory()[1] > 0
        if host == "::":
            assert devices_from_spec(f"127.0.0.1:{listener.address[1]}")


# ---- places on a real server


def greeted(listener: Listener) -> socket.socket:
    sock = socket.create_connection(listener.address, 5)
    try:
        sock.sendall(pack_header(C.HELLO, 24) + bytes(24))
        if len(sock.recv(36, socket.MSG_WAITALL)) != 36:
            raise ConnectionResetError
    except OSError:
        sock.close()
        raise
    return sock


def has_left(sock: socket.socket) -> bool:
    """Whether the server has closed this connection."""
    readable, _, _ = select.select([sock], [], [], 0)
    return bool(readable) and sock.recv(1, socket.MSG_PEEK) == b""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyggml_rpc.admission.EMPTY_SILENCE", 0.2)
    monkeypatch.setattr("pyggml_rpc.admission.SILENCE", 0.6)


@pytest.mark.usefixtures("impatient")
def test_silent_clients_keep_nobody_out(server: Server, kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    """64 that said HELLO and nothing else once held the server for as long as they liked."""
    caplog.set_level("INFO", "pyggml.rpc")
    with Listener(server, port=0, limits=Limits(max_clients=8)) as listener:
        working = Client(listener.endpoint, 5, 5, 5)
        working.ask(C.ALLOC_BUFFER, NEWEST.pack(C.ALLOC_BUFFER, device=0, size=100))
        silent = [greeted(listener) for _ in range(7)]
        with pytest.raises(OSError):
            greeted(listener)
        until(lambda: "turned away: 8 clients are there" in caplog.text)
        time.sleep(0.25)
        fresh = [greeted(listener) for _ in range(3)]
        assert working.ask(C.DEVICE_COUNT)["device_count"][0] == 1, "one with memory was sent away before empty ones"
        until(lambda: sum(map(has_left, silent)) == 3)
        assert not any(map(has_left, fresh)), "the oldest leave"
        assert re.search(r"closed: it made room for another, having been silent for \d+ s", caplog.text) is None
        for sock in (*fresh, *silent):
            sock.close()
        working.close()
        until(lambda: listener.n_clients == 0)


@pytest.mark.usefixtures("impatient")
def test_one_address_does_not_have_all_places(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pyggml_rpc.transport.owner_of", lambda address: address)
    with Listener(server, port=0, limits=Limits(max_clients=8, max_clients_of_one=3)) as listener:
        socks = [greeted(listener) for _ in range(3)]
        with pytest.raises(OSError):
            greeted(listener)
        until(lambda: "turned away: 3 clients of its address are there" in caplog.text)
        for sock in socks:
            sock.close()


def test_a_client_that_is_turned_away_is_told_what_may_be(server: Server) -> None:
    with (
        Listener(server, port=0, limits=Limits(max_clients=1)) as listener,
        greeted(listener),
        pytest.raises(RpcError, match="HELLO: the server has no place left, or closed at once"),
    ):
        devices_from_spec(listener.endpoint)


# ---- time


def test_a_graph_has_so_much_time(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    toy = kit.ToyDevice()
    with Listener(Server([toy], graph_timeout=0.2), port=0) as listener:
        toy.gate.clear()
        one = Client(listener.endpoint, 5, 5, 5)
        handle = int(one.ask(C.ALLOC_BUFFER, NEWEST.pack(C.ALLOC_BUFFER, size=64))["remote_ptr"][0])
        base = int(one.ask(C.BUFFER_GET_BASE, NEWEST.pack(C.BUFFER_GET_BASE, remote_ptr=handle))["base_ptr"][0])
        a, b = (kit.record(id=i, buffer=handle, data=base) for i in (1, 2))
        c = kit.record(id=3, buffer=handle, data=base, op=Op.ADD, flags=16, src=[1, 2, *[0] * 8])
        one.tell(C.GRAPH_COMPUTE, kit.graph_body([3], [a, b, c]), urgent=True)
        with pytest.raises(RpcError):
            one.ask(C.GET_TENSOR, NEWEST.pack(C.GET_TENSOR, tensor=c, size=4), memoryview(bytearray(4)))
        until(lambda: "GRAPH_COMPUTE: the graph took more than 0.2 s" in caplog.text)
        assert toy.inside == 0
        toy.gate.set()


@pytest.mark.parametrize("shares", [False, True], ids=["a backend plans for itself", "for all of its device"])
def test_a_long_graph_keeps_nobody_waiting(kit: Any, monkeypatch: pytest.MonkeyPatch, shares: bool) -> None:
    """One product of 908 bytes once kept everybody from computing for as long as it took."""
    monkeypatch.setattr("pyggml_rpc.served.PATIENCE", 0.2)
    toy, gates, planned = kit.ToyDevice(), list[threading.Event](), list[Any]()
    toy.kind, toy.shares_plans = (Kind.GPU, True) if shares else (Kind.CPU, False)
    server = Server([toy])
    opened = toy.open

    def separate(n_threads: int | None = None) -> Any:
        """A backend of its own, which computes when its gate is open."""
        backend, gate = opened(n_threads), threading.Event()
        gates.append(gate)
        whole = backend.compute

        def compute(plan: Any) -> None:
            while not gate.wait(0.01):
                if backend.aborted:
                    raise ComputeError("aborted")
            whole(plan)

        plan = backend.plan
        backend.plan = lambda graph, **more: planned.append(plan(graph, **more)) or planned[-1]
        backend.compute = compute
        return backend

    monkeypatch.setattr(toy, "open", separate)
    with Listener(server, port=0) as listener:
        long, short, third = (Client(listener.endpoint, 5, 5, 5) for _ in range(3))

        def add(client: Client) -> Callable[[], list[float]]:
            handle = int(client.ask(C.ALLOC_BUFFER, NEWEST.pack(C.ALLOC_BUFFER, size=64))["remote_ptr"][0])
            base = int(client.ask(C.BUFFER_GET_BASE, NEWEST.pack(C.BUFFER_GET_BASE, remote_ptr=handle))["base_ptr"][0])
            a, b = (kit.record(id=i, buffer=handle, data=base) for i in (1, 2))
            c = kit.record(id=3, buffer=handle, data=base + 16, op=Op.ADD, flags=16, src=[1, 2, *[0] * 8])
            values = struct.pack("<4f", 1, 2, 3, 4)
            client.tell(C.SET_TENSOR, NEWEST.pack(C.SET_TENSOR, tensor=a), values)
            client.tell(C.GRAPH_COMPUTE, kit.graph_body([3], [a, b, c]), urgent=True)

            def result() -> list[float]:
                memory = bytearray(16)
                client.ask(C.GET_TENSOR, NEWEST.pack(C.GET_TENSOR, tensor=c, size=16), memoryview(memory))
                return list(struct.unpack("<4f", memory))

            return result

        first = add(long)
        until(lambda: len(gates) == 1 and server.devices[0].turns.n_running == 1)
        second = add(short)
        until(lambda: len(gates) == 2)
        gates[1].set()
        assert second() == [2, 4, 6, 8]
        held = server.devices[0].used
        short.tell(C.GRAPH_RECOMPUTE, NEWEST.pack(C.GRAPH_RECOMPUTE, uid=1), urgent=True)
        assert second() == [2, 4, 6, 8] and server.devices[0].used == held, "plans for other backends are kept"
        other = add(third)
        assert other() == [2, 4, 6, 8] and len(gates) == 2
        assert len(planned) == (3 if shares else 3 + 3), "one for each graph, and for each run elsewhere another"
        assert not server.devices[0].turns.n_waiting and server.devices[0].turns.n_running == 1
        gates[0].set()
        assert first() == [2, 4, 6, 8]
        for client in (long, short, third):
            client.close()


def test_lowering_ends_when_its_client_leaves(
    kit: Any, toy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A large graph once was lowered for minutes after its client had gone."""
    caplog.set_level("DEBUG", "pyggml.rpc")
    began = threading.Event()

    def slow(node: Any) -> None:
        began.set()
        time.sleep(0.001)

    monkeypatch.setattr("pyggml_rpc.graphs.check", slow)
    with Listener(Server([toy]), port=0) as listener:
        one = Client(listener.endpoint, 5, 5, 5)
        handle = int(one.ask(C.ALLOC_BUFFER, NEWEST.pack(C.ALLOC_BUFFER, size=64))["remote_ptr"][0])
        base = int(one.ask(C.BUFFER_GET_BASE, NEWEST.pack(C.BUFFER_GET_BASE, remote_ptr=handle))["base_ptr"][0])
        n = 30_000  # half a minute
        first = kit.record(id=1, buffer=handle, data=base)
        node = kit.record(id=2, buffer=handle, data=base, op=Op.CONT, flags=16, src=[1, *[0] * 9])
        body = bytearray(kit.graph_body(list(range(2, n)), [first]))
        at = len(body)
        body += node.tobytes() * (n - 2)
        for i in range(n - 2):
            body[at + 296 * i : at + 296 * i + 8] = (i + 2).to_bytes(8, "little")
        body[16 + 8 * (n - 2) : 20 + 8 * (n - 2)] = (n - 1).to_bytes(4, "little")
        one.tell(C.GRAPH_COMPUTE, bytes(body), urgent=True)
        assert began.wait(10)
        one.close()
        until(lambda: listener.n_clients == 0, 5)
        assert listener.server.devices[0].used == 0 and toy.computed == 0


# ---- what the log says


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    caplog.set_level("INFO", "pyggml.rpc")
    yield lambda: [re.sub(r"127\.0\.0\.1:\d+", "PEER", r.getMessage()) for r in caplog.records]


def test_who_came_what_was_lent_and_who_left(server: Server, told: Callable[[], list[str]]) -> None:
    with Listener(server, port=0) as listener:
        for _ in range(10):
            with greeted(listener) as short:
                short.sendall(pack_header(C.DEVICE_COUNT, 0))
                assert short.recv(12)
        client = Client(listener.endpoint, 5, 5, 5)
        for size in (5 << 20, 1 << 19):
            client.ask(C.ALLOC_BUFFER, NEWEST.pack(C.ALLOC_BUFFER, device=0, size=size))
        client.close()
        until(lambda: listener.n_clients == 0)
    came, left = told()
    assert came == "PEER: came, and was lent 5.0 MiB of TOY"
    assert re.fullmatch(
        r"PEER: left \(\d+\.\d s, 0 graphs, 5\.5 MiB lent at most, 0\.0 MiB received, 0\.0 MiB sent\)", left
    )


def test_a_server_that_stops_says_so(server: Server, told: Callable[[], list[str]]) -> None:
    with Listener(server, port=0) as listener:
        client = Client(listener.endpoint, 5, 5, 5)
        client.ask(C.ALLOC_BUFFER, NEWEST.pack(C.ALLOC_BUFFER, device=0, size=100))
    assert told()[1] == "the server stops, with 1 client"
    assert told()[2].startswith("PEER: connection closed: the server stops (")
    with pytest.raises(RpcError, match="the server closed the connection"):
        client.ask(C.DEVICE_COUNT)


def test_lines_of_one_kind_are_limited_and_counted() -> None:
    clock = [0.0]
    limit = LimitRate(burst=3, rate=0.5, clock=lambda: clock[0])

    def say(text: str, *args: object, level: int = logging.WARNING) -> str | None:
        record = logging.LogRecord("pyggml.rpc", level, "", 0, text, args, None)
        return record.getMessage() if limit.filter(record) else None

    assert [say("%s: bad", i) for i in range(5)] == ["0: bad", "1: bad", "2: bad", None, None]
    assert say("%s: other", 1) == "1: other"
    assert say("%s: bad", 1, level=logging.DEBUG) == "1: bad"
    clock[0] = 1.9
    assert say("%s: bad", "100%") is None
    clock[0] = 2.1
    assert say("%s: bad", "100%") == "100%: bad (3 more such lines were not written)"
    assert say("%s: bad", 6) is None
    clock[0] = 100.0
    assert [say("%s: bad", i) for i in range(4)][1:] == ["1: bad", "2: bad", None]
    for i in range(1000):
        say(f"kind {i}")
    assert len(limit._kinds) < 300


def test_sizes() -> None:
    assert [mib(n) for n in (0, 1 << 19, 93 << 20, 1 << 40)] == ["0.0 MiB", "0.5 MiB", "93.0 MiB", "1048576 MiB"]
