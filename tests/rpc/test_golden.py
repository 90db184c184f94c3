"""What a stock client and a stock server once said to each other (golden/, captured by tests/support/capture.py): our
framing makes the same bytes of it, and our server, given the same requests, computes the same logits.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pyggml_rpc.connection import ClientConnection, Reply, Request, ServerConnection, TensorBody, TensorHead
from pyggml_rpc.records import ClientBuffer, link, read_graph, read_tensors, write_tensors
from pyggml_rpc.server import Server
from pyggml_rpc.session import Session
from pyggml_rpc.wire import TENSOR, V7, V8, Command, Protocol, Record, Rest, pack_header, unpack

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.host import HostBuffer
from pyggml.ops import Op

C = Command
GOLDEN = Path(__file__).parent / "golden"
WHOLE = 1 << 20


class Exchange(NamedTuple):
    """One request of the capture, and its reply's body if the command has one."""

    command: Command
    body: bytes
    reply: bytes | None
    protocol: Protocol

    @property
    def request(self) -> Request:
        return Request(self.command, self.body, self.protocol[self.command].request)


def exchanges(name: str, protocol: Protocol = V7) -> list[list[Exchange]]:
    """Of each connection in the file, taken apart by the lengths in the frames alone."""
    requests, replies = ((GOLDEN / f"{name}.{way}.bin").read_bytes() for way in ("requests", "replies"))
    connections: list[list[Exchange]] = []
    while requests:
        command, length = Command(requests[0]), int.from_bytes(requests[1:9], "little")
        body, requests = requests[9 : 9 + length], requests[9 + length :]
        reply = None
        if protocol[command].reply is not None:
            length = int.from_bytes(replies[:8], "little")
            reply, replies = replies[8 : 8 + length], replies[8 + length :]
        if command is C.HELLO:
            connections.append([])
        connections[-1].append(Exchange(command, body, reply, protocol))
    assert not replies
    return connections


SHORT, (SESSION,) = exchanges("short"), exchanges("session")
*NEWEST_SHORT, NEWEST_SESSION = exchanges("newest", V8)  # the client reads the devices' memory before it loads
*SPLIT_SHORT, SPLIT = exchanges("split", V8)
ALL = [*SHORT, SESSION, *NEWEST_SHORT, NEWEST_SESSION, *SPLIT_SHORT, SPLIT]


def test_what_was_captured() -> None:
    """Enough for the other tests to mean something."""
    made = [exchange.command for exchange in SESSION]
    assert made.count(C.GRAPH_COMPUTE) == 4 and made.count(C.GRAPH_RECOMPUTE) == 1 and made.count(C.GET_TENSOR) == 5
    assert {C.ALLOC_BUFFER, C.BUFFER_GET_BASE, C.BUFFER_CLEAR, C.FREE_BUFFER, C.SET_TENSOR, C.GET_ALLOC_SIZE} < set(
        made
    )
    graphs = [read_graph(e.request).records for e in SESSION if e.command is C.GRAPH_COMPUTE]
    ops = {Op(op) for records in graphs for op in records["op"].tolist()}
    assert {Op.MUL_MAT, Op.ROPE, Op.SET_ROWS, Op.SOFT_MAX, Op.FLASH_ATTN_EXT, Op.RMS_NORM, Op.GLU, Op.PERMUTE} < ops
    short = {exchange.command for connection in SHORT for exchange in connection}
    assert short == {C.HELLO, C.DEVICE_COUNT, C.GET_DEVICE_MEMORY, C.GET_ALIGNMENT, C.GET_MAX_SIZE}


def test_what_was_captured_of_8_0_0() -> None:
    made = [exchange.command for exchange in NEWEST_SESSION]
    assert made.count(C.GRAPH_COMPUTE) >= 2 and made.count(C.GRAPH_RECOMPUTE) >= 1 and made.count(C.GET_TENSOR) >= 2
    uids = [V8.uid_in(e.request.record) for e in NEWEST_SESSION if e.command in (C.GRAPH_COMPUTE, C.GRAPH_RECOMPUTE)]
    assert all(uids) and len(set(uids)) == made.count(C.GRAPH_COMPUTE)
    made = [exchange.command for exchange in SPLIT]
    assert made.count(C.COMM_INIT) == made.count(C.COMM_FREE) == 2 and made.count(C.COMM_ALLREDUCE) == 4
    assert {C.SET_TENSOR_2D, C.GET_TENSOR, C.GRAPH_COMPUTE, C.GRAPH_RECOMPUTE} < set(made)
    assert all(e.reply == b"\1" for e in SPLIT if e.command is C.COMM_INIT)


@pytest.mark.parametrize("step", [WHOLE, 1, 1000], ids=["whole", "byte by byte", "in pieces"])
def test_the_server_reads_a_stock_clients_bytes(step: int) -> None:
    for connection in ALL:
        sent = b"".join(pack_header(e.command, len(e.body)) + e.body for e in connection)
        server, seen, head, memory = ServerConnection(connection[0].protocol), [], b"", bytearray()
        for _ in pieces(sent, step, server):
            while (event := server.next_event()) is not None:
                if isinstance(event, TensorHead):
                    head, memory = event.record.tobytes(), bytearray(event.size)
                    server.receive_into(memoryview(memory))
                elif isinstance(event, TensorBody):
                    seen.append((event.command, head + bytes(memory)))
                else:
                    assert isinstance(event, Request)
                    seen.append((event.command, bytes(event.body)))
                    reply = connection[len(seen) - 1].reply
                    if reply is not None:
                        framed = b"".join(bytes(piece) for piece in server.reply(reply))
                        assert framed == len(reply).to_bytes(8, "little") + reply
        assert seen == [(e.command, e.body) for e in connection]


def pieces(data: bytes, step: int, receiver: ServerConnection | ClientConnection) -> Iterator[int]:
    """Hand `data` over in pieces of at most `step` bytes."""
    while data:
        space = receiver.space()
        count = min(len(space), len(data), step)
        space[:count] = data[:count]
        receiver.received(count)
        data = data[count:]
        yield count


@pytest.mark.parametrize("step", [WHOLE, 1], ids=["whole", "byte by byte"])
def test_the_client_frames_alike_and_reads_a_stock_servers_bytes(step: int) -> None:
    for connection in ALL:
        client = ClientConnection()
        for command, body, reply, protocol in connection:
            message = protocol[command]
            fixed = message.request.itemsize if message.request_rest is Rest.DATA else len(body)
            data = body[fixed:] if message.request_rest is Rest.DATA else None
            into = bytearray(len(reply or b"")) if message.reply_rest is Rest.DATA else None
            frame = client.request(command, body[:fixed], data, None if into is None else memoryview(into))
            assert b"".join(bytes(piece) for piece in frame) == pack_header(command, len(body)) + body
            if reply is None:
                continue
            for _ in pieces(len(reply).to_bytes(8, "little") + reply, step, client):
                event = client.next_event()
            assert isinstance(event, Reply) and event.command is command
            assert (event.record.tobytes() if into is None else bytes(into)) == reply
        assert client.version == connection[0].protocol.version


def test_records_are_written_as_they_were_read() -> None:
    """Every field of a stock client's tensors survives our Tensor, save the name's bytes behind its end."""
    lent = ClientBuffer(1, 1 << 40, HostBuffer.alloc(CPUDevice(), 1 << 22), 0, 1 << 22)
    checked = 0
    for exchange in (*SESSION, *NEWEST_SESSION, *SPLIT):
        if exchange.command is not C.GRAPH_COMPUTE:
            continue
        foreign = read_graph(exchange.request)
        records = foreign.records.copy()
        kept = records["data"].copy(), records["buffer"].copy()
        present = records["buffer"] != 0
        lowest = records["data"][present].min()
        records["data"][present] -= lowest - np.uint64(lent.base)  # the capture's buffers, as one
        records["data"][present] %= np.uint64(1 << 21)
        records["data"][present] += np.uint64(lent.base)
        records["buffer"][present] = lent.handle
        tensors = read_tensors(records, {lent.handle: lent})
        numbers = {id(t): int(number) for t, number in zip(tensors, records["id"], strict=True)}
        by_number = {number: t for t, number in zip(tensors, numbers.values(), strict=True)}
        for tensor, record in zip(tensors, records, strict=True):
            sources = record["src"].tolist()
            tensor.src = tuple(by_number.get(s) for s in sources)
            tensor.view_src = by_number.get(int(record["view_src"]))
        places = {id(t): (int(h), int(d)) for t, h, d in zip(tensors, *reversed(kept), strict=True)}
        uses = {id(t): int(n) for t, n in zip(tensors, records["use_count"], strict=True)}
        again = write_tensors(tensors, lambda t, places=places: places[id(t)], numbers, uses)  # type: ignore[misc]
        for field in TENSOR.names or ():
            assert (again[field] == foreign.records[field]).all(), field
        assert len(link(foreign, read_tensors(records, {lent.handle: lent})).nodes) >= (1 if exchange in SPLIT else 20)
        checked += len(tensors)
    assert checked > 150


class Replay:
    """The captured requests to a session of ours: its handles and addresses in place of the stock server's."""

    def __init__(self, protocol: Protocol) -> None:
        self.session = Session(Server([CPUDevice()], n_threads=1, protocol=protocol))
        self.handles: dict[int, tuple[int, int, int]] = {}  # theirs -> (ours, their base, our base)
        self.connection = ServerConnection(protocol)

    def ask(self, command: Command, body: bytes) -> bytes | None:
        said = b""
        for _ in pieces(pack_header(command, len(body)) + body, WHOLE, self.connection):
            for frame in self.session.run(self.connection):
                said += b"".join(bytes(piece) for piece in frame)
        return said[8:] if said else None

    def play(self, exchange: Exchange) -> bytes | None:
        command, body, reply, protocol = exchange
        layout = protocol[command].request
        fixed = unpack(layout, body[: layout.itemsize]).copy()
        rest = body[layout.itemsize :]
        if "remote_ptr" in (layout.names or ()):
            theirs = int(fixed["remote_ptr"][0])
            fixed["remote_ptr"] = self.handles[theirs][0]
        for field in ("tensor", "srcs", "src", "dst"):
            if field in (layout.names or ()) and command is not C.GET_ALLOC_SIZE:
                self.move(fixed[field].reshape(-1))
        if command is C.GRAPH_COMPUTE:
            foreign = read_graph(exchange.request)
            records = foreign.records.copy()
            self.move(records)
            ids = body[layout.itemsize : layout.itemsize + 8 * len(foreign.nodes) + 4]
            rest = ids + records.tobytes()
        said = self.ask(command, fixed.tobytes() + rest)
        if command is C.ALLOC_BUFFER:
            assert said is not None and reply is not None
            theirs, ours = (int(unpack(protocol[command].reply, r)["remote_ptr"][0]) for r in (reply, said))  # type: ignore[arg-type]
            self.handles[theirs] = ours, 0, 0
        elif command is C.BUFFER_GET_BASE:
            assert said is not None and reply is not None
            bases = [int.from_bytes(r, "little") for r in (reply, said)]
            self.handles[theirs] = self.handles[theirs][0], bases[0], bases[1]
        return said

    def move(self, records: Record) -> None:
        for i, theirs in enumerate(records["buffer"].tolist()):
            if theirs:
                ours, their_base, our_base = self.handles[theirs]
                records["buffer"][i] = ours
                records["data"][i] = int(records["data"][i]) - their_base + our_base


@pytest.mark.parametrize(("session", "n"), [(SESSION, 5), (NEWEST_SESSION, 4)], ids=["7.0.0", "8.0.0"])
def test_our_server_answers_a_stock_client_as_the_stock_server_did(session: list[Exchange], n: int) -> None:
    replay = Replay(session[0].protocol)
    logits = []
    for exchange in session:
        said = replay.play(exchange)
        assert (said is None) == (exchange.reply is None)
        if said is None:
            continue
        assert exchange.reply is not None and len(said) == len(exchange.reply)
        if exchange.command is C.GET_TENSOR:
            logits.append([np.frombuffer(r, "<f4") for r in (said, exchange.reply)])
        elif exchange.command in (C.HELLO, C.GET_ALLOC_SIZE):
            assert said == exchange.reply
    assert len(logits) == n
    ours, theirs = np.array(logits).swapaxes(0, 1).astype(np.float64)
    norms = np.square(theirs).sum(-1)
    assert (np.square(ours - theirs).sum(-1) < 1e-5 * norms).all()
    assert (np.square(np.roll(ours, 1, axis=0) - theirs).sum(-1) > 0.1 * norms).all(), "this test could not fail"
    server = replay.session.server
    replay.session.close()
    assert server.counters.refused == 0 and server.devices[0].used == 0
    server.close()
