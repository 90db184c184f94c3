"""A machine that loses power or its cable is noticed within seconds of silence; one that lives, and whose program does not read for long,
is never taken for lost. Some tests lose real segments between two network namespaces, the others those of single sockets (deaf.py)."""

import contextlib
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import two_machines
from deaf import deafen, hear_again, linux_only
from loopback import framed
from mutants import Mutant, assert_caught
from pyggml_rpc import link, transport, unheard
from pyggml_rpc.addresses import join_endpoint
from pyggml_rpc.client import Client
from pyggml_rpc.comm import LOOPBACK, CommError
from pyggml_rpc.errors import RpcError
from pyggml_rpc.link import Link
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Limits, Listener, Wire
from pyggml_rpc.unheard import UnheardError, Watch, info
from pyggml_rpc.wire import NEWEST, Command, pack_header
from waiting import until

LIMIT = two_machines.LIMIT
LONG = 4 * LIMIT  # by then Linux asks for a closed window at intervals that are longer than the limit
C = Command


# ---- two machines


@pytest.fixture(scope="module")
def two() -> Callable[..., dict[str, Any]]:
    if (reason := two_machines.why_not()) is not None:
        pytest.skip(reason)
    return two_machines.run


def test_a_server_that_loses_its_cable(two: Callable[..., dict[str, Any]], mutant: str = "none") -> None:
    found = two("dead", mutant)
    reason = r"DEVICE_COUNT: its machine has answered nothing for \d s \(off, or without network\)"
    assert re.fullmatch(f"RPC server {found['endpoint']}: {reason}", found["error"])
    assert found["lost"] == found["error"]
    assert LIMIT < found["seconds"] < 3 * LIMIT


def test_a_server_whose_cable_is_back_in_time(two: Callable[..., dict[str, Any]]) -> None:
    found = two("back")
    assert found["error"] is None is found["lost"] and found["seconds"] > 0.9


def test_a_server_that_loses_its_cable_while_one_sends(two: Callable[..., dict[str, Any]]) -> None:
    found = two("dead while one sends")
    assert found["ended"] == "lost" and LIMIT < found["seconds"] < 3 * LIMIT


def test_a_server_that_loses_its_cable_while_it_adds_up(two: Callable[..., dict[str, Any]]) -> None:
    found = two("dead while one adds up")
    assert re.fullmatch(
        r"the other server: its machine has answered nothing for \d s \(off, or without network\)", found["error"]
    )
    assert found["sum"] == 7 and LIMIT < found["seconds"] < 3 * LIMIT


def test_a_server_that_does_not_read(two: Callable[..., dict[str, Any]], mutant: str = "none") -> None:
    found = two("alive with its window closed", mutant)
    assert found["ended"] == "not lost" and found["silence"] > 1.2 * LIMIT
    assert found["accepted"] == 1, "it was asked whether it lives"


@pytest.mark.parametrize(
    "mutant, test",
    [
        ("nobody looks", test_a_server_that_loses_its_cable),
        ("silence is enough", test_a_server_that_does_not_read),
    ],
)
def test_mutants_of_two_machines(two: Callable[..., dict[str, Any]], mutant: str, test: Callable[..., None]) -> None:
    with pytest.raises(AssertionError):
        test(two, mutant)


# ---- one machine


def wait_in(wire: Wire, seconds: float) -> str:
    """What ends a wait for an answer."""
    end = time.monotonic() + seconds

    def pause() -> float:
        if time.monotonic() > end:
            raise TimeoutError
        return 0.02  # more often than anybody looks

    try:
        wire.receive_into(memoryview(bytearray(9)), pause)
    except UnheardError as error:
        return str(error)
    except TimeoutError:
        return "not lost"
    return "answered"


@contextlib.contextmanager
def connected(limit: float) -> Iterator[tuple[Wire, socket.socket, socket.socket]]:
    """Our end, the other end, and what listens there."""
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as stack:
        patched.setattr(transport, "UNHEARD", limit)
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        wire = stack.enter_context(contextlib.closing(Wire(*listening.getsockname(), 5)))
        accepted = stack.enter_context(listening.accept()[0])
        yield wire, accepted, listening


@linux_only
def test_a_machine_that_answers_new_connections_is_not_lost() -> None:
    with connected(0.6) as (wire, accepted, listening):
        deafen(accepted)
        wire.send([b"?"], lambda: 1.0)
        assert wait_in(wire, 3.0) == "not lost"
        listening.settimeout(0)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                listening.accept()[0].close()
                asked += 1
        assert 2 <= asked <= 5, "it is asked again after each limit"
        deafen(listening)
        assert wait_in(wire, 30.0).startswith("its machine has answered nothing for ")


@linux_only
def test_a_machine_whose_program_refuses_new_connections_is_not_lost() -> None:
    with connected(0.6) as (wire, accepted, listening):
        listening.close()
        deafen(accepted)
        wire.send([b"?"], lambda: 1.0)
        assert wait_in(wire, 3.0) == "not lost"
        hear_again(accepted)
        accepted.sendall(b"!")
        assert wait_in(wire, 30.0) == "answered"


@linux_only
def test_where_all_was_acknowledged_nobody_is_lost() -> None:
    with connected(0.2) as (wire, accepted, listening):
        wire.send([b"?"], lambda: 1.0)
        until(lambda: (known := info(wire._sock)) is not None and not known.unacknowledged)
        deafen(accepted)
        deafen(listening)
        assert wait_in(wire, 1.5) == "not lost", "it computes"


def test_where_the_system_does_not_tell_nobody_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(0.2) as (wire, _, _):
        for platform in ("darwin", "win32", "freebsd14"):
            monkeypatch.setattr(sys, "platform", platform)
            assert info(wire._sock) is None and unheard.unheard(wire._sock, 0) == 0
        monkeypatch.undo()
    assert info(wire._sock) is None, "it is closed"


def raw(listener: Listener) -> socket.socket:
    sock = socket.create_connection(listener.address, 5)
    sock.sendall(pack_header(C.HELLO, 24) + bytes(24))
    major = listener.server.protocol.version.major
    assert sock.recv(36, socket.MSG_WAITALL) == framed(C.HELLO, major=major)
    return sock


@linux_only
def test_a_server_leaves_a_client_whose_machine_is_lost(
    toy: Any, caplog: pytest.LogCaptureFixture, wait: float = 30.0
) -> None:
    with (
        Listener(Server([toy]), port=0, limits=Limits(unheard=LIMIT)) as listener,
        caplog.at_level(logging.INFO, "pyggml.rpc"),
        raw(listener) as lost,
        raw(listener),
    ):
        lost.sendall(pack_header(C.ALLOC_BUFFER, 12) + NEWEST.pack(C.ALLOC_BUFFER, device=0, size=4096))
        lost.recv(24, socket.MSG_WAITALL)
        deafen(lost)
        lost.sendall(pack_header(C.DEVICE_COUNT, 0))
        client = next(client for client in listener._clients.values() if client.session.figures.requests > 1)
        until(lambda: client.session.figures.sent > 36 + 24)
        deafen(client.sock)  # it would hear the question again
        began = time.monotonic()
        until(lambda: listener.n_clients == 1, wait)
        assert time.monotonic() - began > LIMIT - 0.5
        assert listener.server.devices[0].used == 0
        assert "connection closed: its machine has answered nothing for " in caplog.text


@linux_only
def test_a_server_stays_with_a_client_that_does_not_read(kit: Any, toy: Any) -> None:
    size = 1 << 24
    with Listener(Server([toy]), port=0, limits=Limits(unheard=LIMIT)) as listener, raw(listener) as slow:
        slow.sendall(pack_header(C.ALLOC_BUFFER, 12) + NEWEST.pack(C.ALLOC_BUFFER, device=0, size=size))
        reply = slow.recv(24, socket.MSG_WAITALL)
        handle = int.from_bytes(reply[8:16], "little")
        slow.sendall(pack_header(C.BUFFER_GET_BASE, 8) + handle.to_bytes(8, "little"))
        base = int.from_bytes(slow.recv(16, socket.MSG_WAITALL)[8:], "little")
        tensor = kit.record((size // 4,), buffer=handle, data=base)
        body = NEWEST.pack(C.GET_TENSOR, tensor=tensor, offset=0, size=size)
        slow.sendall(pack_header(C.GET_TENSOR, len(body)) + body)
        time.sleep(LONG)
        assert listener.n_clients == 1
        left = 8 + size
        while left:
            left -= len(slow.recv(left))


# ---- two servers


@contextlib.contextmanager
def rank_0(seconds: float) -> Iterator[tuple[Link, socket.socket, socket.socket]]:
    """One rank's end, the other end, and what listens there."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sock = socket.create_connection(listening.getsockname(), 5)
        made = stack.enter_context(contextlib.closing(Link(sock, 0, lambda: False, seconds)))
        yield made, stack.enter_context(listening.accept()[0]), listening


def swapped(made: Link) -> str:
    """What ends it."""
    with pytest.raises(CommError) as caught:
        made.swap(memoryview(b"?" * 64), memoryview(bytearray(64)))
    return str(caught.value)


@linux_only
def test_another_server_whose_machine_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "STALLED", 1.5)
    with rank_0(0.4) as (made, accepted, listening):
        deafen(accepted)
        deafen(listening)
        reason = r"the other server: its machine has answered nothing for \d s \(off, or without network\)"
        assert re.fullmatch(reason, swapped(made))


@linux_only
def test_another_server_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine answers, or refuses new connections."""
    monkeypatch.setattr(link, "STALLED", 0.6)
    with rank_0(0.2) as (made, _, _):
        assert swapped(made) == "nothing came from the other server for 0.6 s"
    with rank_0(0.2) as (made, accepted, listening):
        deafen(accepted)
        listening.close()
        assert swapped(made) == "nothing came from the other server for 0.6 s"


def test_other_servers_are_asked_when_they_are_silent() -> None:
    """By the kernel, as clients and servers are, so that it is noticed where all was acknowledged."""
    with rank_0(1.0) as (made, _, _), connected(1.0) as (wire, _, _):
        for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
            if hasattr(socket, option):
                theirs, ours = (
                    end._sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)) for end in (made, wire)
                )
                assert theirs == ours
        assert made._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@linux_only
def test_a_firewall_that_says_nothing_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has called may not be asked at all: then it has longer."""
    with rank_0(1.0) as (made, _, listening):
        assert link._refuses(made._sock)
        deafen(listening)
        assert not link._refuses(made._sock)
        listening.close()
        assert link._refuses(made._sock)
    patience: list[float] = []
    monkeypatch.setattr(link, "Link", lambda sock, rank, gone, seconds: patience.append(seconds) or sock.close())
    monkeypatch.setattr(link, "_greet", lambda *args: None)
    for refuses in (True, False):
        monkeypatch.setattr(link, "_refuses", lambda sock, answer=refuses: answer)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            link.join(LOOPBACK, "", 1, "127.0.0.1", port, lambda: False)
        calling = threading.Timer(0.1, lambda at=port: socket.create_connection(("127.0.0.1", at), 5).close())
        calling.start()
        link.join(LOOPBACK, "127.0.0.1", 0, "", port, lambda: False)
        calling.join()
    assert patience == [30.0, 30.0, 30.0, 120.0]


MUTANTS: dict[str, tuple[Mutant, Callable[..., None], dict[str, Any]]] = {
    "nobody is asked": (
        (Watch, "_answers", ".getpeername()) not in _NO_ANSWER", ".getpeername()) is None"),
        test_a_machine_that_answers_new_connections_is_not_lost, {},
    ),
    "at once": (
        (Watch, "look", "now - self._asked >= self.pause", "True"),
        test_a_machine_that_answers_new_connections_is_not_lost, {},
    ),
    "what is acknowledged counts": (
        (unheard, "unheard", "known.retransmits if known.window else 0\n    else:\n        without_answer = known.probes if known.waiting else 0",
         "1\n    else:\n        without_answer = 1"),
        test_where_all_was_acknowledged_nobody_is_lost, {},
    ),
    "a server does not look": (
        (Listener, "_leave_the_lost", "client.hang_up(", "len("),
        test_a_server_leaves_a_client_whose_machine_is_lost, {"wait": 2 * LIMIT},
    ),
    "nobody looks after the other server": (
        (Link, "_wait", "self._watch.look()", "pass"),
        test_another_server_whose_machine_is_lost, {},
    ),
    "another server's silence is enough": (
        (unheard.Watch, "_answers", ".getpeername()) not in _NO_ANSWER", ".getpeername()) is None"),
        test_another_server_that_computes, {},
    ),
    "another server is not asked": (
        (Link, "__init__", "ask_when_silent(sock)", "pass"),
        test_other_servers_are_asked_when_they_are_silent, {},
    ),
    "a firewall proves as much": (
        (link, "join", "UNHEARD if rank == 1 or _refuses(sock) else SILENT", "UNHEARD"),
        test_a_firewall_that_says_nothing_proves_nothing, {},
    ),
    "a server counts seconds alone": (
        (transport, "unheard", "without_answer >= repetitions", "True"),
        test_a_server_stays_with_a_client_that_does_not_read, {},
    ),
}  # fmt: skip


@linux_only
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(
    kit: Any, toy: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    wrong, test, more = MUTANTS[mutant]
    assert_caught(monkeypatch, wrong, test, kit=kit, toy=toy, caplog=caplog, **more)


@linux_only
def test_the_error_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "UNHEARD", 0.6)
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            accepted.append(listening.accept()[0])
            accepted[0].recv(1 << 10)
            accepted[0].sendall(framed(C.HELLO, major=8))

        serving = threading.Thread(target=serve)
        serving.start()
        endpoint = join_endpoint(*listening.getsockname())
        client = Client(endpoint, 5, 20, 20)
        serving.join()
        with accepted[0]:
            deafen(accepted[0])
            deafen(listening)
            reason = "DEVICE_COUNT: its machine has answered nothing for "
            with pytest.raises(RpcError, match=f"^RPC server {endpoint}: {reason}"):
                client.ask(C.DEVICE_COUNT)
        assert client.broken and reason in str(client.lost)
