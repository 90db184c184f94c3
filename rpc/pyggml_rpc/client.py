"""The client's connection to one endpoint, shared by all its devices.

Owns the order of requests and what a failure is called (RpcError: endpoint, command, reason). Requests without a reply
wait in an outbox until something makes them urgent, so that what a token needs goes out in one system call. Reference:
`rpc_dispatcher` in ggml-rpc.cpp.
"""

import functools
import hashlib
import logging
import secrets
import threading
import time
import weakref

from pyggml.cachedir import PrivateFolder
from pyggml.errors import CacheError, ComputeError
from pyggml_rpc.addresses import split_endpoint
from pyggml_rpc.connection import ClientConnection, Piece, Reply
from pyggml_rpc.errors import RemoteProtocolError, RpcError
from pyggml_rpc.kept import SentGraphs
from pyggml_rpc.records import KEY
from pyggml_rpc.transport import Wire
from pyggml_rpc.unheard import UnheardError
from pyggml_rpc.wire import CAPS, WAITS, Command, Protocol, Record, Version

log = logging.getLogger("pyggml.rpc.client")

CONNECT_TIMEOUT = 5.0
HELLO_TIMEOUT = 10.0
IO_TIMEOUT = 300.0  # for a whole answer, which a large prompt may have to be computed for; and
SLOWEST = 1 << 18  # bytes a second that an answer or a request may count on beyond that
NOTICES = (10.0, 60.0)  # seconds of waiting after which a line says so; then every minute
NO_PLACE = "the server has no place left, or closed at once"
SMALL = 1 << 16  # bytes of data that are copied into the outbox rather than sent at once
OUTBOX = 1 << 18

_clients: "weakref.WeakValueDictionary[str, Client]" = weakref.WeakValueDictionary()
_clients_lock = threading.Lock()
_every: "weakref.WeakSet[Client]" = weakref.WeakSet()
_every_lock = threading.Lock()


def connect(
    endpoint: str,
    connect_timeout: float = CONNECT_TIMEOUT,
    hello_timeout: float = HELLO_TIMEOUT,
    io_timeout: float = IO_TIMEOUT,
) -> "Client":
    """The living connection to this endpoint, else a new one: a stock server serves one at a time. Raises RpcError."""
    with _clients_lock:
        client = _clients.get(endpoint)
        if client is None or client.broken:
            client = _clients[endpoint] = Client(endpoint, connect_timeout, hello_timeout, io_timeout)
        else:
            client.set_timeout(io_timeout)
        return client


def hang_up() -> None:
    """From any thread: whoever waits for a server, in all of this process, gets an RpcError. For its end."""
    with _every_lock:
        found = list(_every)
    for client in found:
        client.hang_up()


def client_key(endpoint: str) -> bytes:
    """What this user's weights are known by to one server: another for each, so that none can pass for the user to the
    next. Empty where no secret can be kept; the server then goes by the address."""
    folder = PrivateFolder("rpc-client")
    try:
        secret = folder.read("secret")
        if secret is None or len(secret) != 32:
            folder.write("secret", secrets.token_bytes(32))
            secret = folder.read("secret")
    except CacheError:
        return b""
    return hashlib.blake2b(endpoint.encode(), key=secret, digest_size=KEY).digest() if secret else b""


class Patience:
    """How long to wait for one request or answer of `size` bytes: all of it, however its bytes come."""

    def __init__(self, endpoint: str, command: Command, timeout: float, size: int) -> None:
        self._what = endpoint, command.name
        self._began = time.monotonic()
        self._seconds = timeout + size / SLOWEST
        self._notice = NOTICES[0]

    def __call__(self) -> float:
        """Seconds to wait before it is asked again. Raises TimeoutError when that was enough; says in between that one
        waits."""
        waited = time.monotonic() - self._began
        if waited >= self._seconds:
            raise TimeoutError
        if waited >= self._notice:
            log.warning("waiting for %s (%s) since %.0f s", *self._what, self._notice)
            later = (notice for notice in NOTICES if notice > self._notice)
            self._notice = next(later, self._notice + NOTICES[-1])
        return max(0.0, min(self._notice, self._seconds) - waited)


class Client:
    """Thread-safe.

    `users` are open backends and live buffers: when the last of them goes, the connection is closed, which frees what
    the server still holds, and the next request opens another. A failure is final (`broken`): what was on the server is
    lost. `sent` says what the server can compute again. `computing`: a graph was handed over, and no answer has come
    since.
    """

    def __init__(self, endpoint: str, connect_timeout: float, hello_timeout: float, io_timeout: float) -> None:
        self.endpoint = endpoint
        self.lock = threading.RLock()
        self.broken = False
        self._why: str | None = None  # it is broken
        self.users = 0
        self.computing = False
        self.probe = b""  # a question that is answered when all that was handed over is computed
        self._interrupted = False
        self.bytes_sent = 0
        self.requests = dict.fromkeys(Command, 0)
        self._timeouts = connect_timeout, hello_timeout, io_timeout
        self._timeout = hello_timeout
        self._wire: Wire | None = None
        self._connection = ClientConnection()
        self.sent = SentGraphs(self._connection.protocol)
        self._outbox: list[Piece] = []
        self._outbox_size = 0
        self._last = Command.HELLO
        self._asked = self._answered = 0
        self._last_reply: Record | None = None
        with _every_lock:
            _every.add(self)
        with self.lock:
            self._open()

    def _open(self) -> None:
        connect_timeout, hello_timeout, io_timeout = self._timeouts
        try:
            host, port = split_endpoint(self.endpoint)
            wire = Wire(host, port, connect_timeout)
        except ValueError as error:
            raise RpcError(self.endpoint, "connect", str(error)) from error
        except TimeoutError as error:
            raise RpcError(self.endpoint, "connect", f"no answer within {connect_timeout:g} s") from error
        except OSError as error:
            raise RpcError(self.endpoint, "connect", error.strerror or str(error)) from error
        self._wire = wire
        weakref.finalize(self, wire.close)
        self._connection = ClientConnection()
        self._asked = self._answered = 0
        self._timeout = hello_timeout
        self.ask(Command.HELLO, bytes(CAPS))
        self._timeout = io_timeout
        self.sent = SentGraphs(self.protocol)

    def set_timeout(self, io_timeout: float) -> None:
        """Seconds for a whole answer, from now on."""
        with self.lock:
            self._timeouts = (*self._timeouts[:2], io_timeout)
            self._timeout = io_timeout

    @functools.cached_property
    def key(self) -> bytes:
        """Goes with weights that the server may keep on disk."""
        return client_key(self.endpoint)

    @property
    def protocol(self) -> Protocol:
        """What the server speaks."""
        return self._connection.protocol

    @property
    def version(self) -> Version:
        version = self._connection.version
        assert version is not None
        return version

    def ask(self, command: Command, body: Piece = b"", into: memoryview | None = None) -> Record:
        """Send a request, with all that waits, and return the reply. Raises RpcError; ComputeError after `interrupt`."""
        with self.lock:
            self._queue(command, body, into=into)
            ticket = self._asked
            self._asked += 1
            self.flush()
            return self._wait(ticket)

    def tell(self, command: Command, body: Piece, data: Piece | None = None, urgent: bool = False) -> None:
        """Send a request that has no reply; unless urgent or large it goes with the next one that is.

        `data` may change as soon as this returns. What the server makes of it shows at the next `ask`.
        """
        with self.lock:
            large = data is not None and len(data) > SMALL
            if data is not None and not large:
                data = bytes(data)
            self._queue(command, body, data)
            if urgent or large or self._outbox_size > OUTBOX:
                self.flush()

    def flush(self) -> None:
        """Send what waits."""
        with self.lock:
            pieces, size = self._outbox, self._outbox_size
            self._outbox, self._outbox_size = [], 0
            if not pieces:
                return
            assert self._wire is not None
            try:
                self._wire.send(pieces, Patience(self.endpoint, self._last, self._timeout, size))
            except TimeoutError as error:
                raise self._failed(
                    f"{size} bytes were not accepted within {self._timeout + size / SLOWEST:.3g} s"
                ) from error
            except UnheardError as error:
                raise self._failed(str(error)) from error
            except OSError as error:
                closed = f"the server closed the connection ({error.strerror or error})"
                raise self._failed(NO_PLACE if self._connection.silent else closed) from error
            except BaseException:  # half a request may be out
                self._failed("a request was broken off")
                raise
            self.bytes_sent += size

    def interrupt(self) -> None:
        """From any thread: nobody waits any longer for what is computed. ComputeError ends a wait for its results.

        The protocol cannot end the computation itself. The connection stays, and what is asked next is answered after it.
        """
        wire = self._wire
        if self.computing and wire is not None:
            self._interrupted = True
            wire.wake()

    def hang_up(self) -> None:
        """From any thread: whoever waits for the server, for what reason ever, gets an RpcError, and so does all that comes."""
        if (wire := self._wire) is not None:
            wire.hang_up()

    def close(self) -> None:
        """Leave the server to others."""
        with self.lock:
            self._outbox, self._outbox_size = [], 0
            self.sent.clear()
            self.probe = b""
            self.computing = self._interrupted = False
            if self._wire is not None:
                self._wire.close()
                self._wire = None

    def add_user(self) -> None:
        """A device or buffer more uses the connection."""
        with self.lock:
            self.users += 1

    def remove_user(self) -> None:
        """One fewer; the last one closes it."""
        with self.lock:
            self.users -= 1
            if not self.users:
                self.close()

    def _queue(self, command: Command, body: Piece, data: Piece | None = None, into: memoryview | None = None) -> None:
        if self.broken:
            raise RpcError(self.endpoint, command.name, "the connection has ended")
        if self._wire is None:
            self._open()
        pieces = self._connection.request(command, body, data, into)
        self._last = command
        self.requests[command] += 1
        self._outbox += pieces
        self._outbox_size += sum(len(piece) for piece in pieces)

    def _wait(self, ticket: int) -> Record:
        connection, wire = self._connection, self._wire
        assert wire is not None
        patience = Patience(self.endpoint, connection.waiting_for or self._last, self._timeout, connection.expected)
        try:
            while self._answered <= ticket:
                event = connection.next_event()
                if isinstance(event, Reply):
                    if event.command in WAITS:
                        self.computing = False
                    self._answered += 1
                    self._last_reply = event.record
                elif self._interrupted:
                    self.computing = self._interrupted = False
                    raise ComputeError(f"RPC server {self.endpoint}: aborted while it computes")
                elif (count := wire.receive_into(connection.space(), patience)) is not None:
                    connection.received(count)
        except RemoteProtocolError as error:
            raise self._failed(NO_PLACE if self._connection.silent else str(error)) from error
        except TimeoutError as error:
            raise self._failed(self._silence()) from error
        except UnheardError as error:
            raise self._failed(str(error)) from error
        except OSError as error:
            broke = f"the connection broke ({error.strerror or error})"
            raise self._failed(NO_PLACE if self._connection.silent else broke) from error
        assert self._last_reply is not None
        self._interrupted = False
        return self._last_reply

    def _silence(self) -> str:
        if self._connection.version is None:
            return f"no answer within {self._timeout:g} s: the server is busy with another client, or is none"
        return f"no whole answer within {self._timeout + self._connection.expected / SLOWEST:.3g} s"

    def distrust(self, command: Command, reason: str) -> RpcError:
        """The error for an answer that cannot be true; the connection ends."""
        with self.lock:
            return self._ended(command, reason)

    @property
    def lost(self) -> str | None:
        """Why what was on the server is lost; None = it is not, as far as is known. Unless somebody just waits for the server, it is
        seen here whether that has hung up."""
        if not self.broken and self.lock.acquire(blocking=False):
            try:
                if self._wire is not None and self._wire.ended():
                    self._failed("the server closed the connection")
            finally:
                self.lock.release()
        return self._why

    def _failed(self, reason: str) -> RpcError:
        return self._ended(self._connection.waiting_for or self._last, reason)

    def _ended(self, command: Command, reason: str) -> RpcError:
        error = RpcError(self.endpoint, command.name, reason)
        self.broken, self._why = True, str(error)
        self.close()
        return error
