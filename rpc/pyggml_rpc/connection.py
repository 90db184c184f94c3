"""Both ends of one connection as state machines: bytes in, events out. Owns framing, order and lengths.

It must not know a socket, a device, or what a tensor means. The owner loops:

    n = sock.recv_into(connection.space()); connection.received(n)       # n = 0: the peer closed
    while (event := connection.next_event()) is not None: ...            # None: needs more bytes

`next_event` raises RemoteProtocolError when the peer breaks the rules, and goes on raising it. What is stored is bounded:
one inbox of fixed size, and one graph of at most `max_graph` bytes whose memory grows only as its bytes arrive. The data
of a tensor is never stored: its head is an event, and the owner hands over the memory that it belongs in.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, unique
from typing import NamedTuple, NoReturn, TypeAlias

from pyggml_rpc.errors import RemoteProtocolError
from pyggml_rpc.wire import (
    HELLO_REPLY,
    NEWEST,
    PROTOCOLS,
    REPLY_HEADER,
    REQUEST_HEADER,
    Command,
    Layout,
    Protocol,
    Record,
    Rest,
    Version,
    pack_header,
    read_header,
    unpack,
)

Piece: TypeAlias = bytes | bytearray | memoryview

INBOX = 1 << 16
HEADER = REQUEST_HEADER.itemsize
FIRST_STEP = 1 << 16  # a graph's memory begins so small and doubles as its bytes arrive
MAX_GRAPH = 1 << 26
VERSION = 3  # bytes: major, minor, patch, with which an answer to HELLO of any version begins
LARGEST_HELLO = 1 << 10  # of those that may be a later version's; what is larger is no ggml RPC server's


class Request(NamedTuple):
    """A whole request. For GRAPH_COMPUTE the body includes the ids and records behind its fixed part."""

    command: Command
    body: Piece
    layout: Layout

    @property
    def record(self) -> Record:
        """The fixed part."""
        return unpack(self.layout, memoryview(self.body)[: self.layout.itemsize])


class TensorHead(NamedTuple):
    """The head of a request that sets a tensor: `size` bytes follow; `receive_into` says where, before more is asked."""

    command: Command
    body: bytes
    size: int
    layout: Layout

    @property
    def record(self) -> Record:
        return unpack(self.layout, self.body)


class TensorBody(NamedTuple):
    """The bytes that the last `receive_into` waited for have arrived. `left`: so many more follow, and need memory."""

    command: Command
    left: int = 0


class Reply(NamedTuple):
    """An answer. Bytes of a tensor are not in it: they went into the memory given with the request."""

    command: Command
    record: Record


@dataclass(frozen=True)
class Closed:
    """The peer closed between two frames."""


@unique
class State(Enum):
    """What comes next; the value is what an error calls it."""

    HEADER = "a header"
    BODY = "the body"
    MEMORY = "the place"  # the owner has not said yet where the data goes
    DATA = "the data"
    ENDED = "nothing"


class _Receiver:
    """Where received bytes wait: in a bounded inbox, or already in the memory they belong in."""

    def __init__(self) -> None:
        self._inbox = memoryview(bytearray(INBOX))
        self._start = 0
        self._end = 0
        self._target: memoryview | None = None
        self._filled = 0
        self._direct = False
        self._eof = False
        self.silent = True  # no byte has come yet
        self._broken: str | None = None  # not the error itself, which would keep all that waits here alive

    def space(self) -> memoryview:
        """Where the next bytes from the peer belong; never empty once `next_event` has returned None."""
        left = 0 if self._target is None else len(self._target) - self._filled
        self._direct = self._start == self._end and left >= INBOX // 2
        if self._direct:
            assert self._target is not None
            return self._target[self._filled :]
        if self._start:
            waiting = self._end - self._start
            self._inbox[:waiting] = self._inbox[self._start : self._end]
            self._start, self._end = 0, waiting
        return self._inbox[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes were written to the start of what `space` returned; 0 means that the peer closed."""
        self.silent = self.silent and not count
        if count == 0:
            self._eof = True
        elif self._direct:
            self._filled += count
        else:
            self._end += count
            assert self._end <= INBOX, "received more than space() offered"

    def _take(self, count: int) -> bytes | None:
        if self._end - self._start < count:
            return None
        taken = self._inbox[self._start : self._start + count].tobytes()
        self._start += count
        return taken

    def _aim(self, target: memoryview | None) -> None:
        self._target, self._filled = target, 0

    def _fill(self) -> bool:
        """Move what waits in the inbox to the target; true when the target is full."""
        assert self._target is not None
        count = min(self._end - self._start, len(self._target) - self._filled)
        if count:
            self._target[self._filled : self._filled + count] = self._inbox[self._start : self._start + count]
            self._filled += count
            self._start += count
        return self._filled == len(self._target)

    @property
    def _waiting(self) -> int:
        return self._end - self._start

    def _fail(self, message: str) -> RemoteProtocolError:
        self._broken = message
        return RemoteProtocolError(message)


class ServerConnection(_Receiver):
    """The server's end: requests come out, replies go in. Requests are answered strictly in order."""

    def __init__(
        self,
        protocol: Protocol = NEWEST,
        max_graph: int = MAX_GRAPH,
        receiving: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`receiving` is told how many bytes a graph that arrives takes from now on, before it does, and may raise."""
        super().__init__()
        self.protocol = protocol
        self._max_graph = max_graph
        self._receiving = receiving
        self._messages = protocol.by_number
        self._state = State.HEADER
        self._command = Command.HELLO
        self._message = protocol[Command.HELLO]
        self._length = 0
        self._left = 0  # bytes of a tensor that have no memory yet
        self.greeted = False  # HELLO has begun
        self._owed: Command | None = None

    def next_event(self) -> Request | TensorHead | TensorBody | Closed | None:
        """What the bytes received so far make, None: more are needed. Raises RemoteProtocolError, again at each further
        call."""
        if self._broken is not None:
            raise RemoteProtocolError(self._broken)
        assert self._owed is None, f"{self._owed!r} has not been answered"
        assert self._state is not State.MEMORY, "receive_into() has not been called"
        event = self._advance()
        if event is None and self._eof:
            if self._state is State.HEADER and not self._waiting:
                self._state = State.ENDED
                return Closed()
            where = self._state.value if self._state is State.HEADER else f"{self._state.value} of {self._command.name}"
            raise self._fail(f"closed in the middle of {where}")
        return event

    def _advance(self) -> Request | TensorHead | TensorBody | None:
        if self._state is State.DATA:
            if not self._fill():
                return None
            assert self._target is not None
            self._left -= len(self._target)
            self._target = None
            self._state = State.MEMORY if self._left else State.HEADER
            return TensorBody(self._command, self._left)
        if self._state is State.HEADER and not self._read_header():
            return None
        if self._state is not State.BODY:
            return None
        message = self._message
        if message.request_rest is Rest.GRAPH:
            graph = self._read_graph()
            return None if graph is None else Request(self._command, graph, message.request)
        body = self._take(message.request.itemsize)
        if body is None:
            return None
        if message.request_rest is Rest.DATA:
            self._state, self._left = State.MEMORY, self._length - len(body)
            return TensorHead(self._command, body, self._left, message.request)
        self._state = State.HEADER
        self._owed = self._command if message.reply is not None else None
        return Request(self._command, body, message.request)

    def _read_header(self) -> bool:
        if self._end - self._start < HEADER:
            # a first byte that is no HELLO is refused at once: its sender may never send eight more
            if self._waiting and not self.greeted and self._inbox[self._start] != Command.HELLO:
                raise self._fail(f"the first request is command {self._inbox[self._start]}, not HELLO")
            return False
        number, length = read_header(self._inbox, self._start)
        self._start += HEADER
        if number not in self._messages:
            raise self._fail(self._unknown(number))
        command, message = self._messages[number]
        fixed = message.request.itemsize
        if not self.greeted or command is Command.HELLO:
            self._check_hello(command, length, fixed)
        if message.request_rest is Rest.NOTHING and length != fixed:
            raise self._fail(f"{command.name} of {length} bytes, not {fixed}")
        if message.request_rest is Rest.DATA and length < fixed:
            raise self._fail(f"{command.name} of {length} bytes, at least {fixed} are needed")
        if message.request_rest is Rest.GRAPH:
            if not fixed + 4 <= length <= self._max_graph:
                raise self._fail(f"{command.name} of {length} bytes, not within {fixed + 4} to {self._max_graph}")
            self._receiving(min(length, FIRST_STEP))
            self._aim(memoryview(bytearray(min(length, FIRST_STEP))))
        self.greeted = True
        self._state, self._command, self._message, self._length = State.BODY, command, message, length
        return True

    def _unknown(self, number: int) -> str:
        if not self.greeted:
            return f"the first request is command {number}, not HELLO"
        return f"unknown command {number} (this server speaks protocol {self.protocol})"

    def _check_hello(self, command: Command, length: int, fixed: int) -> None:
        """It comes first, and once."""
        if command is not Command.HELLO:
            raise self._fail(f"the first request is command {int(command)}, not HELLO")
        if self.greeted:
            raise self._fail("a second HELLO")
        if length != fixed:
            than = "older" if length < fixed else "newer"
            raise self._fail(
                f"HELLO of {length} bytes, not {fixed}: the client is {than} than this server's protocol {self.protocol}"
            )

    def _read_graph(self) -> memoryview | None:
        while self._fill():
            assert self._target is not None
            done = self._target
            if len(done) == self._length:
                self._aim(None)
                self._state = State.HEADER
                return done
            size = min(self._length, 2 * len(done))
            self._receiving(len(done) + size)
            larger = memoryview(bytearray(size))
            larger[: len(done)] = done
            self._target, self._filled = larger, len(done)
            del done
            self._receiving(size)
        return None

    def receive_into(self, memory: memoryview) -> None:
        """Where the next bytes of the tensor go: all that are left, or some of them; writable."""
        assert self._state is State.MEMORY, "no TensorHead is waiting"
        memory = memory.cast("B")
        assert (len(memory) or not self._left) and len(memory) <= self._left and not memory.readonly
        self._aim(memory)
        self._state = State.DATA

    def reply(self, *pieces: Piece) -> list[Piece]:
        """The frame that answers the last request, as pieces to send in order."""
        assert self._owed is not None, "nothing to answer"
        message = self.protocol[self._owed]
        length = sum(len(piece) for piece in pieces)
        assert message.reply is not None
        assert message.reply_rest is Rest.DATA or length == message.reply.itemsize, (self._owed, length)
        self._owed = None
        return [length.to_bytes(REPLY_HEADER.itemsize, "little"), *pieces]


class ClientConnection(_Receiver):
    """The client's end: requests go in, replies come out. Any number of requests may be under way.

    It speaks what the server's answer to HELLO names, if that is one of PROTOCOLS; `protocol` says which.
    """

    def __init__(self) -> None:
        super().__init__()
        self._greeted = False
        self._pending: deque[tuple[Command, memoryview | None]] = deque()
        self._in_body = False
        self._other_hello: int | None = None  # bytes of an answer to HELLO that is none of a version spoken here
        self.protocol = NEWEST  # until the server has answered HELLO, which is the same in all
        self.version: Version | None = None  # the server's, once it has answered HELLO

    def request(
        self, command: Command, body: Piece = b"", data: Piece | None = None, into: memoryview | None = None
    ) -> list[Piece]:
        """The frame of a request, as pieces to send in order.

        `data`: what a request that sets a tensor carries behind its head (not copied). `into`: the writable memory that
        a tensor's bytes go into; its length is the length that the reply must have.
        """
        message = self.protocol[command]
        assert self.version is not None or command is Command.HELLO, "HELLO is answered first"
        assert not (self._greeted and command is Command.HELLO), "HELLO comes once"
        assert message.request_rest is Rest.GRAPH or len(body) == message.request.itemsize, (command, len(body))
        assert (data is not None) == (message.request_rest is Rest.DATA)
        assert (into is not None) == (message.reply_rest is Rest.DATA)
        self._greeted = True
        if message.reply is not None:
            self._pending.append((command, None if into is None else into.cast("B")))
        size = len(body) + (0 if data is None else len(data))
        head = pack_header(command, size)
        if message.request_rest is Rest.GRAPH:
            return [head, body]
        return [head + body] if not data else [head + body, data]

    @property
    def waiting_for(self) -> Command | None:
        """The oldest request whose reply has not come."""
        return self._pending[0][0] if self._pending else None

    @property
    def expected(self) -> int:
        """Bytes that the oldest reply which has not come will have, as far as the protocol fixes that."""
        if not self._pending:
            return 0
        command, into = self._pending[0]
        layout = self.protocol[command].reply
        return len(into) if into is not None else layout.itemsize if layout is not None else 0

    def next_event(self) -> Reply | Closed | None:
        """The next reply, or the end; None: more bytes are needed. Raises RemoteProtocolError, again at each further call."""
        if self._broken is not None:
            raise RemoteProtocolError(self._broken)
        event = self._advance()
        if event is None and self._eof:
            if self._pending:
                raise self._fail("the server closed the connection instead of answering; its log says why")
            return Closed()
        return event

    def _advance(self) -> Reply | None:
        if not self._pending:
            if self._waiting:
                raise self._fail(f"the server sent {self._waiting} bytes that were not asked for")
            return None
        command, into = self._pending[0]
        layout = self.protocol[command].reply
        assert layout is not None
        if not self._in_body:
            header = self._take(REPLY_HEADER.itemsize)
            if header is None:
                return None
            expected = layout.itemsize if into is None else len(into)
            length = int.from_bytes(header, "little")
            self._other_hello = length if command is Command.HELLO and length != expected else None
            if length != expected and (self._other_hello is None or not VERSION <= length <= LARGEST_HELLO):
                raise self._fail(f"the reply to {command.name} has {length} bytes, not {expected}")
            self._in_body = True
            self._aim(into)
        if self._other_hello is not None:
            begun = self._take(VERSION)
            if begun is None:
                return None
            self._refuse(Version(*begun), f"; its answer to HELLO has {self._other_hello} bytes, not {layout.itemsize}")
        if into is not None:
            if not self._fill():
                return None
            body = b""
        else:
            taken = self._take(layout.itemsize)
            if taken is None:
                return None
            body = taken
        self._pending.popleft()
        self._in_body = False
        self._aim(None)
        record = unpack(layout, body)
        if command is Command.HELLO:
            self._check_version(record)
        return Reply(command, record)

    def _check_version(self, hello: Record) -> None:
        assert hello.dtype == HELLO_REPLY
        major, minor, patch = (int(hello[field][0]) for field in ("major", "minor", "patch"))
        self.version = Version(major, minor, patch)
        spoken = next((p for p in PROTOCOLS if p.version == self.version), None)
        if spoken is None:
            self._refuse(self.version)
        self.protocol = spoken

    def _refuse(self, theirs: Version, more: str = "") -> NoReturn:
        ours = " and ".join(map(str, PROTOCOLS))
        older = "the server" if theirs < NEWEST.version else "this client"
        raise self._fail(f"the server speaks protocol {theirs}, this client {ours}: {older} needs an upgrade{more}")
