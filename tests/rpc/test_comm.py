"""COMM_INIT, COMM_ALLREDUCE and COMM_FREE: two servers that add up tensors, and who may make them do so."""

import contextlib
import errno
import functools
import inspect
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from mutants import Mutant, assert_caught
from pyggml_rpc import communicators, link, transport
from pyggml_rpc.comm import LOOPBACK, NOBODY, AllowList, CommError, allow_list
from pyggml_rpc.communicators import Communicators
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.served import ServedDevice
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import Command

from pyggml.dtypes import GGMLType
from pyggml.errors import DeviceError
from pyggml.quants.bf16 import bf16_to_f32, f32_to_bf16

C = Command


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def client_of(kit: Any, allowed: AllowList = LOOPBACK, host: bool = True) -> Any:
    server = Server([kit.ToyDevice(host=host)])
    server.join = functools.partial(link.join, allowed, "127.0.0.1")
    return kit.Glued(server)


def init(client: Any, rank: int, port: int, host: str = "127.0.0.1", world: int = 2, device: int = 0) -> int:
    fields = {"device": device, "rank": rank, "world": world, "port": port, "host": host.encode()}
    return int(client.request(C.COMM_INIT, **fields)["ok"])


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except RefusedError as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.fixture(params=["host memory", "memory elsewhere"])
def pair(kit: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Two clients, each of a server of its own, that have a communicator."""
    clients = client_of(kit, host=request.param == "host memory"), client_of(kit)
    port = free_port()
    assert at_once(lambda: init(clients[0], 0, port), lambda: init(clients[1], 1, port)) == [1, 1]
    yield clients
    for client in clients:
        client.session.close()


def tensors(kit: Any, pair: tuple[Any, Any], n: int, dtype: GGMLType, values: list[bytes]) -> list[Any]:
    made = []
    for client, data in zip(pair, values, strict=True):
        handle, base = client.alloc(len(data) + 64)
        made.append(kit.record((n // 4, 4), dtype, buffer=handle, data=base + 64))
        client.set(made[-1], data)
    return made


def allreduce(pair: tuple[Any, Any], records: list[Any]) -> list[Any]:
    calls = [
        functools.partial(c.request, C.COMM_ALLREDUCE, device=0, tensor=t) for c, t in zip(pair, records, strict=True)
    ]
    return at_once(*calls)


@pytest.mark.parametrize("n", [4, 32_764, 32_768, 400_000])
def test_sums_of_f32(kit: Any, pair: tuple[Any, Any], n: int) -> None:
    """Large ones travel as BF16: each side adds the other's rounded values to its own exact ones."""
    rng = np.random.default_rng(n)
    a, b = (rng.standard_normal(n, np.float32) for _ in range(2))
    records = tensors(kit, pair, n, GGMLType.F32, [a.tobytes(), b.tobytes()])
    assert allreduce(pair, records) == [None, None]
    got = [np.frombuffer(c.get(t, 4 * n), "<f4") for c, t in zip(pair, records, strict=True)]
    wire = (lambda x: bf16_to_f32(f32_to_bf16(x))) if n >= 32_768 else lambda x: x
    assert (got[0] == a + wire(b)).all() and (got[1] == b + wire(a)).all()
    assert (got[0] == got[1]).all() == (n < 32_768)
    assert allreduce(pair, records) == [None, None], "and again"
    assert (np.frombuffer(pair[0].get(records[0], 4 * n), "<f4") == got[0] + wire(got[1])).all()


@pytest.mark.parametrize("dtype", [GGMLType.F16, GGMLType.BF16])
def test_sums_of_16_bits(kit: Any, pair: tuple[Any, Any], dtype: GGMLType) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(40_000, np.float32) for _ in range(2))
    if dtype == GGMLType.F16:
        values = [x.astype("<f2") for x in (a, b)]
        expected = (values[0].astype(np.float32) + values[1].astype(np.float32)).astype("<f2")
    else:
        values = [f32_to_bf16(x) for x in (a, b)]
        expected = f32_to_bf16(bf16_to_f32(values[0]) + bf16_to_f32(values[1]))
    records = tensors(kit, pair, 40_000, dtype, [v.tobytes() for v in values])
    assert allreduce(pair, records) == [None, None]
    assert [c.get(t, 80_000) for c, t in zip(pair, records, strict=True)] == [expected.tobytes()] * 2


def test_tensors_of_no_elements(kit: Any, pair: tuple[Any, Any]) -> None:
    for client in pair:
        handle, base = client.alloc(64)
        client.request(C.COMM_ALLREDUCE, tensor=kit.record((4, 0), buffer=handle, data=base + 64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": GGMLType.I32}, "sums of I32"),
        ({"nb": [4, 32, 64, 64]}, "its elements are not contiguous"),
        ({"buffer": 5}, "in no buffer of this connection"),
    ],
)
def test_tensors_that_cannot_be_added(kit: Any, pair: tuple[Any, Any], fields: dict[str, Any], message: str) -> None:
    handle, base = pair[0].alloc(256)
    record = kit.record((4, 2), **{"buffer": handle, "data": base, **fields})
    with pytest.raises(RefusedError, match=f"COMM_ALLREDUCE: .*{message}"):
        pair[0].request(C.COMM_ALLREDUCE, tensor=record)


def test_the_other_server_hangs_up(kit: Any, pair: tuple[Any, Any]) -> None:
    values = [bytes(4 * 4096)] * 2
    records = tensors(kit, pair, 4096, GGMLType.F32, values)
    pair[1].session.close()
    with pytest.raises(RefusedError, match="COMM_ALLREDUCE: the other server"):
        pair[0].request(C.COMM_ALLREDUCE, tensor=records[0])


def test_a_client_that_leaves_ends_the_wait(kit: Any, pair: tuple[Any, Any]) -> None:
    records = tensors(kit, pair, 4, GGMLType.F32, [bytes(16)] * 2)
    threading.Timer(0.1, pair[0].session.abort).start()
    with pytest.raises(RefusedError, match="the client is gone"):
        pair[0].request(C.COMM_ALLREDUCE, tensor=records[0])


def test_a_server_that_says_nothing_for_long(kit: Any, pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "STALLED", 0.2)
    records = tensors(kit, pair, 4, GGMLType.F32, [bytes(16)] * 2)
    with pytest.raises(RefusedError, match=r"nothing came from the other server for 0\.2 s"):
        pair[0].request(C.COMM_ALLREDUCE, tensor=records[0])


def test_descriptors_of_any_number(pair: tuple[Any, Any], kit: Any) -> None:
    """A server of a thousand clients has more than select(2) can name."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        held = [os.dup(0) for _ in range(1024)]
        records = tensors(kit, pair, 4, GGMLType.F32, [bytes(16)] * 2)
        for client in pair:
            client.request(C.COMM_FREE, device=0)
        port = free_port()
        assert at_once(lambda: init(pair[0], 0, port), lambda: init(pair[1], 1, port)) == [1, 1]
        first = functools.partial(pair[0].request, C.COMM_ALLREDUCE, device=0, tensor=records[0])
        second = functools.partial(pair[1].request, C.COMM_ALLREDUCE, device=0, tensor=records[1])
        assert at_once(first, lambda: [time.sleep(0.1), second()][1]) == [None, None], "the first one waits"
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- who has one


def test_one_a_device(kit: Any, pair: tuple[Any, Any]) -> None:
    first = pair[0]
    assert init(first, 0, free_port()) == 1, "it has one: nothing happens"
    second = kit.Glued(first.session.server)
    assert init(second, 0, free_port()) == 0
    first.request(C.COMM_FREE, device=0)
    first.request(C.COMM_FREE, device=0)
    other, port = client_of(kit), free_port()
    assert at_once(lambda: init(second, 0, port), lambda: init(other, 1, port)) == [1, 1]
    second.session.close(), other.session.close()
    assert first.session.server.devices[0].reserve(first.session), "it went with its client"


@pytest.mark.parametrize(
    "wrong", [{"world": 1}, {"world": 3}, {"rank": 2}, {"device": 1}, {"device": 2**32 - 1}, {"port": 1023}, {"port": 0},
              {"port": 65536}, {"port": 2**32 - 1}],
    ids=str,
)  # fmt: skip
def test_what_is_answered_with_no(kit: Any, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, int]) -> None:
    monkeypatch.setattr(link, "JOIN_TIMEOUT", 0.2)
    client = client_of(kit)
    for rank in (0, 1):
        assert init(client, **{"rank": rank, "port": free_port(), **wrong}) == 0
    assert client.session.server.counters.refused == 0
    assert kit.sum_of(client).run(client) == kit.SUM


def test_without_a_listener_there_is_none(kit: Any) -> None:
    assert init(kit.Glued(Server([kit.ToyDevice()])), 0, free_port()) == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_there(kit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: int) -> None:
    monkeypatch.setattr(link, "JOIN_TIMEOUT", 0.3)
    client, port = client_of(kit), free_port()
    began = time.monotonic()
    assert init(client, rank, port) == 0
    assert time.monotonic() - began < 5
    assert re_one(
        caplog.text,
        f"no connection to port {port} within 0.3 s" if rank == 0 else f"cannot connect to 127.0.0.1 port {port}: ",
    )
    with socket.create_server(("127.0.0.1", port)):
        pass  # it is free again
    assert client.session.server.devices[0].reserve(client.session)


def test_no_descriptor_is_left(kit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The client is told so, and the next one may try."""
    client = client_of(kit)

    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(link.selectors, "DefaultSelector", none_left)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            with listening.accept()[0] as sock:
                sock.sendall(bytes(24))
                sock.recv(24, socket.MSG_WAITALL)

        assert at_once(lambda: init(client, 1, listening.getsockname()[1]), greet)[0] == 0
    assert "COMM_INIT: no connection with the other server: Too many open files" in caplog.text
    assert client.session.server.devices[0].reserve(client.session), "nobody has it"


def re_one(text: str, words: str) -> bool:
    return text.count(words) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "localhost", "example.invalid", "", "2130706433", "::1"])
def test_nobody_may_be_called(
    kit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    """Neither a connection nor a question to a name server."""
    monkeypatch.setattr(socket, "create_connection", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert init(client_of(kit, NOBODY), 1, free_port(), host) == 0
    assert f"{host!r} may not be called (flag --comm)" in caplog.text


def test_who_may_not_call_is_hung_up_on(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "JOIN_TIMEOUT", 1.0)
    client, port, heard = client_of(kit, AllowList(["10.0.0.0/8"])), free_port(), []

    def call() -> None:
        for _ in range(50):
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5) as sock:
                heard.append(sock.recv(24))
                return
            time.sleep(0.01)

    assert at_once(lambda: init(client, 0, port), call)[0] == 0
    assert heard == [b""]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(23) + b"\1", bytes(10), b""])
def test_who_is_called_must_be_such_a_server(
    kit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    """Nothing but 24 zeros is ever sent to a service of another kind."""
    monkeypatch.setattr(link, "JOIN_TIMEOUT", 1.0)
    client, got = client_of(kit), []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            sock, _ = listening.accept()
            with sock:
                got.append(sock.recv(24, socket.MSG_WAITALL))
                with contextlib.suppress(OSError):  # it may leave with our answer half read
                    sock.sendall(answer)
                    sock.shutdown(socket.SHUT_WR)
                    sock.settimeout(5)
                    got.append(sock.recv(100))

        port = listening.getsockname()[1]
        assert at_once(lambda: init(client, 1, port), serve)[0] == 0
    assert got in ([bytes(24)], [bytes(24), b""])
    assert re_one(
        caplog.text, "the other side greets with" if len(answer) >= 24 else "the other side hung up on the greeting"
    )


# ---- what the operator says


def test_allow_list() -> None:
    def look_up(name: str) -> list[str]:
        return {"gpu1.lan": ["10.3.0.1", "fe80::7%eth0"]}[name]

    allowed = allow_list(["10.1.0.0/16", "192.168.0.7", "gpu1.lan", "fd00::/8"], look_up)
    for address in (
        "10.1.2.3",
        "192.168.0.7",
        "::ffff:10.1.2.3",
        "fd00::5",
        "fd00::5%eth0",
        "10.3.0.1",
        "fe80::7%eth1",
    ):
        assert allowed.admits(address)
    for address in ("10.2.0.1", "127.0.0.1", "192.168.0.8", "::1", "", "gpu1.lan", "10.3.0.2"):
        assert not allowed.admits(address)
    assert allowed.callable("GPU1.lan") == "GPU1.lan"
    with pytest.raises(CommError):
        allowed.callable("gpu2.lan")
    assert allow_list(["none"], look_up) is NOBODY
    assert "127.0.0.1" in link.look_up("localhost")
    assert LOOPBACK.admits("127.0.0.1") and LOOPBACK.admits("::1") and LOOPBACK.callable("localhost")
    assert not LOOPBACK.admits("128.0.0.1")


@pytest.mark.parametrize(
    "word", ["10.0.0.0/33", "10.0.0.1/8", "300.1.1.1", "", "1.2.3", "none", "x", "a..b", "b" * 64 + ".lan", "a b"]
)
def test_words_that_are_nobody(toy: Any, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """A name that nobody has, too: `x` and `nobody` are mistakes."""

    def unknown(name: str) -> list[str]:
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(transport, "look_up", unknown)
    known = "an address, a network such as 10.0.0.0/8, a host name, or none alone"
    with pytest.raises(DeviceError, match=f"--comm: {word!r} is not {known}(: looked up as a name: .+)?$"):
        Listener(Server([toy]), port=0, comm=["127.0.0.1", word])


@pytest.mark.parametrize(
    ("host", "comm", "expected"),
    [("127.0.0.1", None, True), ("localhost", None, True), ("0.0.0.0", None, False), ("127.0.0.1", ["none"], False),
     ("0.0.0.0", ["127.0.0.1"], True)],
)  # fmt: skip
def test_who_may_by_default(toy: Any, host: str, comm: list[str] | None, expected: bool) -> None:
    with Listener(Server([toy]), host, port=0, comm=comm) as listener:
        assert listener.server.join is not None
        allowed = listener.server.join.args[0]  # type: ignore[attr-defined]
        assert allowed.admits("127.0.0.1") is expected and not allowed.admits("10.0.0.1")


# ---- wrong variants


def sums(n: int) -> Callable[..., None]:
    def test(kit: Any, pair: tuple[Any, Any]) -> None:
        test_sums_of_f32(kit, pair, n)

    return test


def sums_of_bf16(kit: Any, pair: tuple[Any, Any]) -> None:
    test_sums_of_16_bits(kit, pair, GGMLType.BF16)


def not_added(**fields: Any) -> Callable[..., None]:
    message = {"dtype": "sums of I32 are not supported", "nb": "its elements are not contiguous"}[next(iter(fields))]

    def test(kit: Any, pair: tuple[Any, Any]) -> None:
        test_tensors_that_cannot_be_added(kit, pair, fields, message)

    return test


def answered_no(**wrong: int) -> Callable[..., None]:
    def test(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        test_what_is_answered_with_no(kit, monkeypatch, wrong)

    return test


def nobody_called(kit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    try:
        test_nobody_may_be_called(kit, monkeypatch, caplog, "example.invalid")
    except TypeError:
        pytest.fail("a connection was asked for")


def nobody_there(kit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    test_nobody_there(kit, monkeypatch, caplog, 1)


def test_one_of_all_clients_has_it(kit: Any) -> None:
    one_of_all_clients(kit)


def joined(**wrong: int) -> Callable[..., None]:
    """A wish that is refused however willing the other server is."""

    def test(kit: Any) -> None:
        client, asked = kit.Glued(Server([kit.ToyDevice()])), []
        client.session.server.join = lambda *args: asked.append(args)
        assert init(client, **{"rank": 0, "port": 2000, **wrong}) == 0 and not asked

    return test


def one_of_all_clients(kit: Any) -> None:
    """However willing the other server is."""

    class Willing:
        rank = 0

        def close(self) -> None: ...

    one = kit.Glued(Server([kit.ToyDevice()]))
    one.session.server.join = lambda *args: Willing()
    two = kit.Glued(one.session.server)
    assert [init(client, 0, 2000) for client in (one, two, one)] == [1, 0, 1]
    one.session.close()
    assert init(two, 0, 2000) == 1


alone_in_the_world, rank_two = joined(world=3), joined(rank=2, world=2)


ADD, JOIN, ALL = (communicators, "add_up"), (Communicators, "join"), (Communicators, "allreduce")
ADMITS, CALLABLE = (AllowList, "admits"), (AllowList, "callable")
MUTANTS: dict[str, tuple[Mutant, Callable[..., Any]]] = {
    "one's own values are rounded": (
        (*ADD, "return mine + (", "return (bf16_to_f32(f32_to_bf16(mine)) if rounded else mine) + ("),
        sums(32_768),
    ),
    "values travel rounded from one more on": ((*ADD, ">= AS_BF16", "> AS_BF16"), sums(32_768)),
    "small ones are rounded": ((*ADD, "mine.size >= AS_BF16", "True"), sums(4)),
    "the other's values alone": ((*ADD, "return mine + (", "return 0 * mine + ("), sums(4)),
    "BF16 is added as F16": ((*ADD, "dtype == GGMLType.F16", "True"), sums_of_bf16),
    "whole numbers are added": ((*ALL, "not in (GGMLType.F32,", "not in (GGMLType.I32, GGMLType.F32,"), not_added(dtype=GGMLType.I32)),
    "strides do not matter": ((*ALL, "tensor.nb != contiguous", "() == contiguous"), not_added(nb=[4, 32, 64, 64])),
    "a device has several": ((ServedDevice, "reserve", "return False", "return True"), one_of_all_clients),
    "it stays with who left": ((Communicators, "leave", "self._client.server.devices[device].reserve(None)", "pass"), one_of_all_clients),
    "and who had no descriptor": ((link, "join", "except OSError as error", "except EOFError as error"), test_no_descriptor_is_left),
    "and who found nobody": ((*JOIN, "server.devices[device].reserve(None)", "pass"), nobody_there),
    "worlds of any size": ((*JOIN, "world != WORLD or ", ""), alone_in_the_world),
    "any rank": ((*JOIN, "rank >= world or ", ""), rank_two),
    "any name is looked up": ((*CALLABLE, "self.admits(host) or host.lower() in self._names", "True"), nobody_called),
    "names count as they are written": ((*CALLABLE, "host.lower() in", "host in"), test_allow_list),
    "IPv4 within IPv6 is a stranger": ((*ADMITS, 'getattr(ip, "ipv4_mapped", None) or ip', "ip"), test_allow_list),
    "everybody is admitted": ((*ADMITS, "any(ip in network for network in self._networks)", "True"), test_allow_list),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(
    kit: Any, toy: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    wrong, test = MUTANTS[mutant]
    monkeypatch.setattr(link, "STALLED", 0.5)  # the other side may wait for nothing
    fixtures = {"kit": kit, "toy": toy, "caplog": request.getfixturevalue("caplog")}
    if "pair" in inspect.signature(test).parameters:
        clients = client_of(kit), client_of(kit)
        port = free_port()
        assert at_once(lambda: init(clients[0], 0, port), lambda: init(clients[1], 1, port)) == [1, 1]
        request.addfinalizer(lambda: [client.session.close() for client in clients])
        fixtures["pair"] = clients
    assert_caught(monkeypatch, wrong, test, **fixtures)
