"""Framing on the server: every message whole, byte by byte, with trailing bytes, and split anywhere."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyggml_rpc.connection import (
    INBOX,
    Closed,
    Request,
    ServerConnection,
    TensorBody,
    TensorHead,
)
from pyggml_rpc.errors import RemoteProtocolError
from pyggml_rpc.wire import NEWEST, PROTOCOLS, V7, Command, Protocol, Rest, pack_header
from splits import events, split_at

HELLO = pack_header(Command.HELLO, 24) + bytes(24)
CASES = [(p, c) for p in PROTOCOLS for c in p.commands if c is not Command.HELLO]


def body_of(command: Command, protocol: Protocol = NEWEST) -> bytes:
    rng = np.random.default_rng(command)
    body = rng.integers(0, 256, protocol[command].request.itemsize, np.uint8).tobytes()
    if command is Command.HELLO:
        return bytes(24)
    if protocol[command].request_rest is Rest.NOTHING:
        return body
    return body + rng.integers(0, 256, 1000, np.uint8).tobytes()


class Owner:
    """Feeds a server connection in given chunks and does what an owner must: gives memory, answers."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.seen: list[tuple[Command, bytes]] = []
        self.head = b""
        self.memory = bytearray()

    def feed(self, chunks: Iterable[bytes]) -> "Owner":
        for chunk in chunks:
            while chunk:
                space = self.connection.space()
                assert space, "an undrained connection"
                count = min(len(space), len(chunk))
                space[:count] = chunk[:count]
                self.connection.received(count)
                chunk = chunk[count:]
                self.drain()
        return self

    def drain(self) -> object:
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, Closed):
                return event
            if isinstance(event, Request):
                self.seen.append((event.command, bytes(event.body)))
                message = self.connection.protocol[event.command]
                if message.reply is not None:
                    self.connection.reply(bytes(message.reply.itemsize))
            elif isinstance(event, TensorHead):
                self.head = event.record.tobytes()
                self.memory = bytearray(event.size)
                self.connection.receive_into(memoryview(self.memory))
            else:
                assert isinstance(event, TensorBody)
                assert not event.left
                self.seen.append((event.command, self.head + bytes(self.memory)))
        return None


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(("protocol", "command"), CASES, ids=lambda case: getattr(case, "name", str(case)))
@pytest.mark.parametrize("split", ["whole", "byte by byte", "trailing"])
def test_request(protocol: Protocol, command: Command, split: str) -> None:
    body = body_of(command, protocol)
    frame = pack_header(command, len(body)) + body
    owner = Owner(ServerConnection(protocol)).feed([HELLO])
    if split == "whole":
        owner.feed([frame])
    elif split == "byte by byte":
        owner.feed(bytewise(frame)[:-1])
        assert len(owner.seen) == 1, "the last byte has not come"
        owner.feed([frame[-1:]])
    else:
        owner.feed([frame + frame[:5]])
        assert len(owner.seen) == 2
        owner.feed([frame[5:]])
        assert owner.seen.pop() == (command, body)
    assert owner.seen == [(Command.HELLO, bytes(24)), (command, body)]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(PROTOCOLS), st.data())
def test_any_sequence_split_anywhere(protocol: Protocol, data: st.DataObject) -> None:
    commands = data.draw(st.lists(st.sampled_from([c for p, c in CASES if p is protocol]), max_size=12))
    expected = [(Command.HELLO, bytes(24)), *((c, body_of(c, protocol)) for c in commands)]
    stream = b"".join(pack_header(c, len(body)) + body for c, body in expected)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=40))
    owner = Owner(ServerConnection(protocol)).feed(split_at(stream, cuts))
    assert owner.seen == expected
    owner.connection.received(0)
    assert owner.drain() == Closed()


@pytest.mark.parametrize("size", [0, 1, INBOX - 1, INBOX, INBOX + 1, 5 * INBOX + 17])
@pytest.mark.parametrize("chunk", [997, INBOX, 1 << 20])
def test_data_of_any_size_goes_where_it_belongs(size: int, chunk: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, 305 + size, np.uint8).tobytes()
    after = pack_header(Command.DEVICE_COUNT, 0)
    stream = HELLO + pack_header(Command.SET_TENSOR, len(data)) + data + after
    owner = Owner(ServerConnection()).feed(stream[i : i + chunk] for i in range(0, len(stream), chunk))
    assert owner.seen[1:] == [(Command.SET_TENSOR, data), (Command.DEVICE_COUNT, b"")]


@pytest.mark.parametrize("size", [20, INBOX, 300_001])
def test_a_large_graph(size: int) -> None:
    body = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    stream = HELLO + pack_header(Command.GRAPH_COMPUTE, size) + body + pack_header(Command.DEVICE_COUNT, 0)
    owner = Owner(ServerConnection()).feed([stream])
    assert owner.seen[1:] == [(Command.GRAPH_COMPUTE, body), (Command.DEVICE_COUNT, b"")]


def test_a_large_body_is_received_in_place() -> None:
    connection = ServerConnection()
    owner = Owner(connection).feed([HELLO, pack_header(Command.SET_TENSOR, 305 + (1 << 20)) + bytes(305)])
    memory = owner.memory
    space = connection.space()
    assert len(space) == 1 << 20
    space[:4] = b"abcd"
    assert memory[:4] == b"abcd", "no copy in between"


@pytest.mark.parametrize("chunk", [1, 300, INBOX, 1 << 20])
def test_data_may_be_taken_in_parts(chunk: int) -> None:
    """SET_TENSOR_2D of 100,000 bytes into memory of 30,000 at a time, and what follows."""
    head, data = body_of(Command.SET_TENSOR_2D)[:328], np.random.default_rng(1).bytes(100_000)
    stream = (
        HELLO + pack_header(Command.SET_TENSOR_2D, 328 + len(data)) + head + data + pack_header(Command.DEVICE_COUNT, 0)
    )
    connection, parts, left, others = ServerConnection(), [], [], []
    for i in range(0, len(stream), chunk):
        for event in events(connection, stream[i : i + chunk]):
            if isinstance(event, Request):
                others.append(event.command)
                connection.reply(bytes(NEWEST[event.command].reply.itemsize))
                continue
            assert isinstance(event, TensorHead | TensorBody)
            assert event.command is Command.SET_TENSOR_2D
            if isinstance(event, TensorHead):
                assert event.body == head and event.record["n_copies"].dtype == np.uint64
            if isinstance(event, TensorBody):
                left.append(event.left)
            waits = event.size if isinstance(event, TensorHead) else event.left
            if waits:
                parts.append(bytearray(min(30_000, waits)))
                connection.receive_into(memoryview(parts[-1]))
    assert left == [70_000, 40_000, 10_000, 0] and b"".join(parts) == data
    assert others == [Command.HELLO, Command.DEVICE_COUNT]


def test_announced_graph_takes_no_memory_before_its_bytes_come() -> None:
    import tracemalloc

    connection = ServerConnection(max_graph=1 << 33)
    owner = Owner(connection).feed([HELLO])
    tracemalloc.start()
    try:
        owner.feed([pack_header(Command.GRAPH_COMPUTE, 1 << 33) + bytes(100)])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


BROKEN = {
    "first is no HELLO": (pack_header(Command.DEVICE_COUNT, 0), "the first request is command 15, not HELLO"),
    "one byte of an http request": (b"G", "the first request is command 71, not HELLO"),
    "old client": (pack_header(Command.HELLO, 0), "HELLO of 0 bytes, not 24: the client is older than .* 8.0.0"),
    "long HELLO": (pack_header(Command.HELLO, 25) + bytes(25), "HELLO of 25 bytes, not 24"),
    "second HELLO": (HELLO + HELLO, "a second HELLO"),
    "later client": (
        pack_header(Command.HELLO, 32),
        "HELLO of 32 bytes, not 24: the client is newer than this server's protocol 8.0.0",
    ),
    "command 23": (HELLO + bytes([23]) + bytes(8), r"unknown command 23 \(this server speaks protocol 8.0.0\)"),
    "command 255": (HELLO + b"\xff" * 9, "unknown command 255"),
    "SET_TENSOR of 304": (HELLO + pack_header(Command.SET_TENSOR, 304), "SET_TENSOR of 304 bytes, at least 305"),
    "SET_TENSOR_2D of 327": (
        HELLO + pack_header(Command.SET_TENSOR_2D, 327),
        "SET_TENSOR_2D of 327 bytes, at least 328",
    ),
    "GRAPH_COMPUTE of 19": (HELLO + pack_header(Command.GRAPH_COMPUTE, 19), "GRAPH_COMPUTE of 19 bytes, not within 20"),
    "huge GRAPH_COMPUTE": (
        HELLO + pack_header(Command.GRAPH_COMPUTE, 2**64 - 1),
        "GRAPH_COMPUTE of 18446744073709551615",
    ),
    **{
        f"{c.name} of {length}": (
            HELLO + pack_header(c, length),
            f"{c.name} of {length} bytes, not {NEWEST[c].request.itemsize}",
        )
        for c in Command
        if NEWEST[c].request_rest is Rest.NOTHING and c is not Command.HELLO
        for length in (NEWEST[c].request.itemsize + 1, 2**64 - 1)
    },
}


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (pack_header(Command.SET_TENSOR_2D, 328), r"unknown command 18 \(this server speaks protocol 7.0.0\)"),
        (pack_header(Command.GRAPH_RECOMPUTE, 12), "GRAPH_RECOMPUTE of 12 bytes, not 4"),
        (pack_header(Command.GRAPH_COMPUTE, 11), "GRAPH_COMPUTE of 11 bytes, not within 12"),
    ],
)
def test_a_version_has_its_own_commands(stream: bytes, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        Owner(ServerConnection(V7)).feed([HELLO + stream])


@pytest.mark.parametrize("stream, message", BROKEN.values(), ids=list(BROKEN))
def test_broken_requests(stream: bytes, message: str) -> None:
    for chunks in ([stream], bytewise(stream)):
        owner = Owner(ServerConnection())
        with pytest.raises(RemoteProtocolError, match=message):
            owner.feed(chunks)
        with pytest.raises(RemoteProtocolError, match=message):
            owner.connection.next_event()


@pytest.mark.parametrize(
    "stream, where",
    [
        (HELLO[:4], "a header"),
        (HELLO + pack_header(Command.GET_TENSOR, 312) + bytes(311), "the body of GET_TENSOR"),
        (HELLO + pack_header(Command.SET_TENSOR, 405) + bytes(400), "the data of SET_TENSOR"),
        (HELLO + pack_header(Command.GRAPH_COMPUTE, 400) + bytes(399), "the body of GRAPH_COMPUTE"),
    ],
)
def test_closed_in_the_middle(stream: bytes, where: str) -> None:
    owner = Owner(ServerConnection()).feed([stream])
    owner.connection.received(0)
    with pytest.raises(RemoteProtocolError, match=f"closed in the middle of {where}"):
        owner.drain()


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=400), st.booleans())
def test_garbage_never_raises_anything_else(garbage: bytes, greet: bool) -> None:
    owner = Owner(ServerConnection())
    try:
        owner.feed([HELLO + garbage if greet else garbage])
        owner.connection.received(0)
        owner.drain()
    except RemoteProtocolError as error:
        assert "\n" not in str(error)
    except MemoryError:
        pytest.fail("memory was taken for what a header said")
    except (OverflowError, ValueError) as error:
        assert owner.head, error  # this owner, unlike a server, believes the announced size


def test_our_own_mistakes_are_assertions() -> None:
    connection = ServerConnection()
    with pytest.raises(AssertionError):
        connection.reply(b"")
    connection.space()[: len(HELLO)] = HELLO
    connection.received(len(HELLO))
    connection.next_event()
    with pytest.raises(AssertionError, match="has not been answered"):
        connection.next_event()
    with pytest.raises(AssertionError):
        connection.reply(bytes(27))


@pytest.mark.parametrize("fault", ["takes what there is", "forgets what it has"])
def test_splitting_finds_a_reader_that_is_wrong(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Two mutants: one does not wait for a whole record, one drops bytes while it waits."""

    def take(self: ServerConnection, count: int) -> bytes | None:
        have = self._end - self._start
        if have < count and fault == "forgets what it has":
            self._start = self._end
            return None
        count = min(have, count)
        taken = self._inbox[self._start : self._start + count].tobytes()
        self._start += count
        return taken.ljust(9, b"\0") if taken else None

    monkeypatch.setattr(ServerConnection, "_take", take)
    body = body_of(Command.ALLOC_BUFFER)
    stream = HELLO + pack_header(Command.ALLOC_BUFFER, len(body)) + body
    try:
        seen = Owner(ServerConnection()).feed(bytewise(stream)).seen
    except (RemoteProtocolError, AssertionError):
        seen = []
    assert seen != [(Command.HELLO, bytes(24)), (Command.ALLOC_BUFFER, body)]
