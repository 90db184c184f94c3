"""Sockets: the listening server with a thread for each client, and the client's end of a connection.

Owns every socket, thread and timeout (nothing else in the package imports socket); it must not know what a message
means. Whatever a client does, or its death, ends its own thread and nothing else.
"""

import contextlib
import logging
import select
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from pyggml.errors import DeviceError
from pyggml_rpc.connection import Piece, ServerConnection
from pyggml_rpc.errors import RefusedError, RemoteProtocolError
from pyggml_rpc.server import Server
from pyggml_rpc.session import Session

log = logging.getLogger("pyggml.rpc")

MAX_PIECES = 64  # in one call of sendmsg
KEEPALIVE_IDLE = 60  # seconds until the kernel asks a silent machine whether it still exists
GREETING_TIMEOUT = 10.0  # seconds for HELLO, which every client sends at once; after it silence is normal
ABORT_AGAIN = 0.05  # seconds; an abort may come just before the computation that it is meant for


def send_pieces(sock: socket.socket, pieces: Sequence[Piece]) -> None:
    """Send them in order without putting them together first."""
    views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    if not hasattr(sock, "sendmsg"):
        for view in views:
            sock.sendall(view)
        return
    first = 0
    while first < len(views):
        sent = sock.sendmsg(views[first : first + MAX_PIECES])
        while first < len(views) and sent >= len(views[first]):
            sent -= len(views[first])
            first += 1
        if sent:
            views[first] = views[first][sent:]


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", KEEPALIVE_IDLE), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


# ---- the client's end


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """ "host:port" at the first colon, as the reference does. Raises ValueError saying what is wrong."""
    host, colon, port = endpoint.partition(":")
    if not host or not colon:
        raise ValueError(f"{endpoint!r} is not host:port")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{port!r} is no port")
    return host, int(port)


class Wire:
    """A connected socket. Every failure is an OSError; TimeoutError when nothing moved for `timeout` seconds."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._sock = socket.create_connection((host, port), timeout)
        _tune(self._sock)
        self._timeout = timeout
        self._ready = self._sock.dup()  # the same connection, read without waiting: a timeout costs a call to poll
        self._ready.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for sock in (self._sock, self._woken):
            self._selector.register(sock, selectors.EVENT_READ)

    def set_timeout(self, seconds: float) -> None:
        self._sock.settimeout(seconds)
        self._timeout = seconds

    def send(self, pieces: Sequence[Piece]) -> None:
        send_pieces(self._sock, pieces)

    def receive_into(self, space: memoryview) -> int | None:
        """The number of bytes that came, 0 at the end of the stream; None when `wake` was called."""
        while True:
            with contextlib.suppress(BlockingIOError):  # the next part of an answer is mostly there already
                return self._ready.recv_into(space)
            ready = self._selector.select(self._timeout)
            if not ready:
                raise TimeoutError
            if any(key.fileobj is self._woken for key, _ in ready):
                self._woken.recv(1 << 12)
                return None

    def wake(self) -> None:
        """Make a `receive_into` that waits, or else the next one, return None; from any thread."""
        with contextlib.suppress(OSError):  # it is closed, or enough are under way
            self._wake.send(b"!")

    def close(self) -> None:
        self._selector.close()
        for sock in (self._ready, self._sock, self._wake, self._woken):
            sock.close()


# ---- the server's end


class _Client:
    """One accepted connection and the thread that serves it."""

    def __init__(self, listener: "Listener", sock: socket.socket, peer: str, session: Session) -> None:
        self.sock = sock
        self.peer = peer
        self.session = session
        self.thread = threading.Thread(target=listener._serve, args=(self,), name=f"rpc {peer}", daemon=True)

    def hang_up(self) -> None:
        """From any thread: end the computation and make the client's thread see the end of its stream."""
        self.session.abort()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class Listener:
    """A server on a port: accepting from `__init__` on, until `close`.

    `port` 0 takes a free one; `address` says which. `idle_timeout` (seconds) hangs up on clients that are silent for so
    long; None: never, as stock clients expect. Connections over `max_clients` are closed at once. Raises DeviceError
    when the port cannot be had.
    """

    def __init__(
        self,
        server: Server,
        host: str = "127.0.0.1",
        port: int = 50052,
        *,
        max_clients: int = 64,
        idle_timeout: float | None = None,
    ) -> None:
        self.server = server
        self._max_clients = max_clients
        self._idle_timeout = idle_timeout
        self._lock = threading.Lock()
        self._clients: dict[int, _Client] = {}  # by file descriptor
        self._closing = threading.Event()
        self._closed = threading.Event()
        if not 0 <= port < 65536:
            raise DeviceError(f"cannot listen on {host}:{port}: there is no such port")
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            self._sock = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise DeviceError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self.address: tuple[str, int] = self._sock.getsockname()[:2]
        # a byte sent here wakes the threads that wait for sockets
        self._wake, self._woken = socket.socketpair()
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._threads = [threading.Thread(target=self._accept, name="rpc accept", daemon=True)]
        if self._epoll is not None:
            self._epoll.register(self._woken, select.EPOLLIN)
            self._threads.append(threading.Thread(target=self._watch, name="rpc watch", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def endpoint(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    @property
    def n_clients(self) -> int:
        return len(self._clients)

    def wait(self) -> None:
        """Until another thread has closed it. A signal handler that raises ends the wait as well."""
        self._closed.wait()

    def close(self, timeout: float = 5.0) -> None:
        """Stop accepting, end every session and its computation, free all. Twice does nothing."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            clients = list(self._clients.values())
        self._wake.send(b"!")
        for client in clients:
            client.hang_up()
        until = time.monotonic() + timeout
        for client in clients:
            while client.thread.is_alive() and time.monotonic() < until:
                client.session.abort()
                client.thread.join(ABORT_AGAIN)
        for thread in self._threads:
            thread.join(timeout)
        for sock in (self._sock, self._wake, self._woken):
            sock.close()
        if self._epoll is not None:
            self._epoll.close()
        self.server.close()
        self._closed.set()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- threads

    def _accept(self) -> None:
        for sock, peer in self._accepted():
            with self._lock:
                full = len(self._clients) >= self._max_clients
                if full or self._closing.is_set():
                    sock.close()
                    if full:
                        log.warning("%s: turned away, there are %d clients", peer, self._max_clients)
                    continue
                try:
                    _tune(sock)
                    sock.settimeout(GREETING_TIMEOUT)
                    client = _Client(self, sock, peer, Session(self.server, peer))
                    self._clients[sock.fileno()] = client
                    if self._epoll is not None:
                        self._epoll.register(sock, select.EPOLLRDHUP)
                    client.thread.start()
                except (OSError, RuntimeError) as error:  # it is gone already; or there are no more threads to be had
                    log.warning("%s: %s", peer, error)
                    self._clients.pop(sock.fileno(), None)
                    sock.close()

    def _accepted(self) -> Iterator[tuple[socket.socket, str]]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing.is_set():
                try:
                    if all(key.fileobj is not self._sock for key, _ in selector.select()):
                        return
                    sock, address = self._sock.accept()
                except OSError as error:  # the client left the queue, or this process has no descriptor left
                    log.warning("accept: %s", error)
                    self._closing.wait(0.1)
                    continue
                yield sock, f"{address[0]}:{address[1]}"

    def _serve(self, client: _Client) -> None:
        sock, session, peer = client.sock, client.session, client.peer
        log.debug("%s: connected", peer)
        try:
            connection = ServerConnection(receiving=session.receiving)
            patient = False
            while not session.finished:
                connection.received(sock.recv_into(connection.space()))
                for frame in session.run(connection):
                    send_pieces(sock, frame)
                if connection.greeted and not patient:
                    sock.settimeout(self._idle_timeout)
                    patient = True
        except (RemoteProtocolError, RefusedError) as error:
            level = logging.DEBUG if session.gone else logging.WARNING
            log.log(level, "%s: connection closed: %s", peer, error)
        except TimeoutError:
            log.warning("%s: connection closed: silent for %g s", peer, sock.gettimeout() or 0)
        except OSError as error:
            log.debug("%s: connection lost: %s", peer, error)
        except Exception:
            log.exception("%s: connection closed by a fault of this server", peer)
        finally:
            try:
                session.close()
            except Exception:
                log.exception("%s: could not free all that the client had", peer)
            with self._lock:
                self._clients.pop(sock.fileno(), None)
                if self._epoll is not None and not self._epoll.closed:
                    with contextlib.suppress(OSError):
                        self._epoll.unregister(sock)
            sock.close()
            log.debug("%s: disconnected", peer)

    def _watch(self) -> None:
        """Abort what is computed for clients that have hung up: their own threads are busy computing it."""
        assert self._epoll is not None
        dying: list[_Client] = []
        while not self._closing.is_set():
            self._epoll.poll(ABORT_AGAIN if dying else None)
            with self._lock:  # asked again inside, as a descriptor may be another client's by now
                for descriptor, _ in self._epoll.poll(0):
                    client = self._clients.get(descriptor)
                    if client is not None:
                        self._epoll.unregister(descriptor)
                        dying.append(client)
            for client in dying:
                client.session.abort()
            dying = [client for client in dying if client.thread.is_alive()]
