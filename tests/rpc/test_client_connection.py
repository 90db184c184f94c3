"""Framing on the client: replies in the order of requests, whatever a server sends, and however it is split."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyggml_rpc.connection import (
    LARGEST_HELLO,
    ClientConnection,
    Closed,
    Reply,
)
from pyggml_rpc.errors import RemoteProtocolError
from pyggml_rpc.wire import HELLO_REPLY, NEWEST, PROTOCOLS, Command, Protocol, Version, pack, pack_header
from splits import events, split_at

HELLO = pack_header(Command.HELLO, 24) + bytes(24)


def feed_client(client: ClientConnection, data: bytes) -> list[Reply | Closed]:
    return list(events(client, data))


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(8, "little") + body


def greeted(protocol: Protocol = NEWEST) -> ClientConnection:
    client = ClientConnection()
    assert b"".join(client.request(Command.HELLO, bytes(24))) == HELLO
    major, minor, patch = protocol.version
    assert len(feed_client(client, framed(pack(HELLO_REPLY, major=major, minor=minor, patch=patch)))) == 1
    return client


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_client_follows_the_servers_hello(protocol: Protocol) -> None:
    client = greeted(protocol)
    assert client.protocol is protocol and client.version == protocol.version
    body = protocol.pack(Command.GRAPH_RECOMPUTE, device=1, uid=7)
    expected = {4: b"\1\0\0\0", 12: b"\1\0\0\0" + (7).to_bytes(8, "little")}[len(body)]
    assert (
        b"".join(client.request(Command.GRAPH_RECOMPUTE, body))
        == pack_header(Command.GRAPH_RECOMPUTE, len(body)) + expected
    )


@pytest.mark.parametrize("version", [(6, 1, 0), (7, 0, 1), (7, 1, 0), (8, 0, 1), (8, 1, 0), (9, 0, 0), (0, 0, 0)])
def test_client_names_all_versions_when_it_speaks_none_of_the_servers(version: tuple[int, int, int]) -> None:
    client = ClientConnection()
    client.request(Command.HELLO, bytes(24))
    major, minor, patch = version
    older = "the server" if Version(*version) < NEWEST.version else "this client"
    message = rf"speaks protocol {major}\.{minor}\.{patch}, this client 7\.0\.0 and 8\.0\.0: {older} needs an upgrade"
    with pytest.raises(RemoteProtocolError, match=message):
        feed_client(client, framed(pack(HELLO_REPLY, major=major, minor=minor, patch=patch)))


@pytest.mark.parametrize("size", [3, 27, 29, LARGEST_HELLO])
def test_an_answer_to_hello_of_another_size_names_its_version(size: int) -> None:
    client = ClientConnection()
    client.request(Command.HELLO, bytes(24))
    message = (
        f"protocol 9.2.1, this client 7.0.0 and 8.0.0: this client .*; its answer to HELLO has {size} bytes, not 28"
    )
    answer = framed(bytes([9, 2, 1]).ljust(size, b"\xff"))
    assert feed_client(client, answer[:10]) == []
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=message):
            feed_client(client, answer[10:])


@pytest.mark.parametrize("size", [0, 2, LARGEST_HELLO + 1, int.from_bytes(b"HTTP/1.1", "little")])
def test_what_is_no_answer_to_hello_names_no_version(size: int) -> None:
    client = ClientConnection()
    client.request(Command.HELLO, bytes(24))
    with pytest.raises(RemoteProtocolError, match=f"the reply to HELLO has {size} bytes, not 28$"):
        feed_client(client, size.to_bytes(8, "little"))


def test_replies_come_in_the_order_of_requests_however_split() -> None:
    replies = [bytes(range(8)), bytes(16), b"x" * 70_000, b"", b"\1"]
    stream = b"".join(framed(r) for r in replies)
    for step in (1, 7, 4096, len(stream)):
        client = greeted()
        memory, nothing = bytearray(70_000), bytearray()
        client.request(Command.GET_ALIGNMENT, bytes(4))
        client.request(Command.FREE_BUFFER, bytes(8))  # has no reply
        client.request(Command.GET_DEVICE_MEMORY, bytes(4))
        client.request(Command.GET_TENSOR, bytes(312), into=memoryview(memory))
        client.request(Command.GET_TENSOR, bytes(312), into=memoryview(nothing))
        client.request(Command.COPY_TENSOR, bytes(592))
        found = []
        for i in range(0, len(stream), step):
            found += feed_client(client, stream[i : i + step])
        assert [e.command.name for e in found if isinstance(e, Reply)] == [
            "GET_ALIGNMENT",
            "GET_DEVICE_MEMORY",
            "GET_TENSOR",
            "GET_TENSOR",
            "COPY_TENSOR",
        ]
        assert bytes(memory) == replies[2]
        assert client.waiting_for is None


def test_client_refuses_a_wrong_length_before_its_bytes() -> None:
    client = greeted()
    client.request(Command.GET_ALIGNMENT, bytes(4))
    with pytest.raises(RemoteProtocolError, match="the reply to GET_ALIGNMENT has 9 bytes, not 8"):
        feed_client(client, (9).to_bytes(8, "little"))
    client = greeted()
    client.request(Command.GET_TENSOR, bytes(312), into=memoryview(bytearray(10)))
    with pytest.raises(RemoteProtocolError, match=f"the reply to GET_TENSOR has {2**64 - 1} bytes, not 10"):
        feed_client(client, b"\xff" * 8)


def test_client_refuses_what_it_did_not_ask_for() -> None:
    with pytest.raises(RemoteProtocolError, match="1 bytes that were not asked for"):
        feed_client(greeted(), b"!")


def test_client_names_what_it_waited_for() -> None:
    client = greeted()
    client.request(Command.GET_ALIGNMENT, bytes(4))
    client.received(0)
    with pytest.raises(RemoteProtocolError, match="closed the connection instead of answering"):
        client.next_event()
    client = greeted()
    client.received(0)
    assert client.next_event() == Closed()


def test_client_order_is_its_own_duty() -> None:
    with pytest.raises(AssertionError, match="HELLO is answered first"):
        ClientConnection().request(Command.DEVICE_COUNT)
    client = ClientConnection()
    client.request(Command.HELLO, bytes(24))
    with pytest.raises(AssertionError, match="HELLO is answered first"):
        client.request(Command.DEVICE_COUNT)
    with pytest.raises(AssertionError, match="HELLO comes once"):
        greeted().request(Command.HELLO, bytes(24))


def test_data_is_not_copied_into_the_frame() -> None:
    data = memoryview(bytearray(1 << 20))
    pieces = greeted().request(Command.SET_TENSOR, bytes(305), data=data)
    assert pieces[1] is data
    assert b"".join(pieces)[:9] == pack_header(Command.SET_TENSOR, 305 + (1 << 20))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_garbage_from_a_server(garbage: bytes, cuts: list[int]) -> None:
    client = greeted()
    memory = bytearray(5)
    for command, into in (
        (Command.GET_ALIGNMENT, None),
        (Command.GET_TENSOR, memoryview(memory)),
        (Command.COPY_TENSOR, None),
    ):
        client.request(command, bytes(NEWEST[command].request.itemsize), into=into)
    stream = framed(bytes(8)) + framed(b"hello") + garbage
    try:
        for chunk in split_at(stream, cuts):
            feed_client(client, chunk)
    except RemoteProtocolError as error:
        assert "\n" not in str(error)
    assert bytes(memory) == b"hello"
