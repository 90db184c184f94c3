"""Sockets: the listening server with a thread for each client, and the client's end of a connection.

Owns every socket, thread and timeout (nothing else in the package imports socket). Whatever a client does, or its
death, ends its own thread and nothing else.
"""

import contextlib
import functools
import gc
import logging
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pyggml.errors import DeviceError
from pyggml_rpc.addresses import bare_host, is_local, join_endpoint, owner_of
from pyggml_rpc.admission import Admitted, FullError, make_room
from pyggml_rpc.comm import LOOPBACK, NOBODY, allow_list
from pyggml_rpc.connection import Piece, ServerConnection
from pyggml_rpc.errors import RefusedError, RemoteProtocolError
from pyggml_rpc.link import join, look_up
from pyggml_rpc.memory import trim
from pyggml_rpc.server import Server
from pyggml_rpc.session import Session
from pyggml_rpc.unheard import SILENT, UNHEARD, Watch, ask_when_silent, unheard

log = logging.getLogger("pyggml.rpc")

MAX_PIECES = 64  # in one call of sendmsg
REPETITIONS = 3  # of what was sent that a client's machine, which cannot be asked, leaves unanswered
STEADY = 1 << 12  # bytes that come at once show that a client is not silent, even if its request is not whole yet
TICK = 1.0  # seconds between looks at what takes too long
HEAVY = 1 << 24  # bytes that a client caused, from which its end is worth giving memory back to the system
ABORT_AGAIN = 0.05  # seconds; an abort may come just before the computation that it is meant for


def send_pieces(sock: socket.socket, pieces: Sequence[Piece], wait: Callable[[], None] | None = None) -> None:
    """Send them in order without putting them together first.

    `wait`, for a socket that does not block, returns when there may be room for more, or raises what ends the sending.
    """
    views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    together = hasattr(sock, "sendmsg")
    first = 0
    while first < len(views):
        try:
            sent = sock.sendmsg(views[first : first + MAX_PIECES]) if together else sock.send(views[first])
        except BlockingIOError:
            if wait is None:
                raise
            wait()
            continue
        while first < len(views) and sent >= len(views[first]):
            sent -= len(views[first])
            first += 1
        if sent:
            views[first] = views[first][sent:]


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ask_when_silent(sock)


# ---- the client's end


class Wire:
    """A connected socket. Every failure is an OSError.

    Where it waits, `pause` is asked again and again how many seconds to wait before it is asked next; it raises
    TimeoutError when that was long enough. A wait ends with UnheardError when the other machine is lost.
    """

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._sock = socket.create_connection((host, port), timeout)
        _tune(self._sock)
        self._watch = Watch(self._sock, UNHEARD)
        self._sock.setblocking(False)
        self._flows = False  # more is there most likely: it is asked for before it is waited for
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for sock in (self._sock, self._woken):
            self._selector.register(sock, selectors.EVENT_READ)

    def send(self, pieces: Sequence[Piece], pause: Callable[[], float]) -> None:
        """All pieces; `pause`: the seconds that a wait for room may take, asked before each. Raises OSError."""

        def wait() -> None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._sock, selectors.EVENT_WRITE)
                self._select(selector, pause())

        send_pieces(self._sock, pieces, wait)

    def receive_into(self, space: memoryview, pause: Callable[[], float]) -> int | None:
        """The number of bytes that came, 0 at the end of the stream; None when `wake` was called."""
        while True:
            seconds = pause()
            if not self._flows:
                ready = self._select(self._selector, seconds)
                if any(key.fileobj is self._woken for key, _ in ready):
                    self._woken.recv(1 << 12)
                    return None
            try:
                count = self._sock.recv_into(space)
            except BlockingIOError:
                self._flows = False
                continue
            self._flows = count == len(space)
            return count

    def _select(self, selector: selectors.BaseSelector, seconds: float) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait no longer than that, and look after the other machine where nothing happens for long."""
        ready = selector.select(min(seconds, self._watch.pause))
        if not ready:
            self._watch.look()
        return ready

    def ended(self) -> bool:
        """Whether the other side has closed the connection, and all that it had sent was read."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def wake(self) -> None:
        """Make a `receive_into` that waits, or else the next one, return None; from any thread."""
        with contextlib.suppress(OSError):  # it is closed, or enough are under way
            self._wake.send(b"!")

    def hang_up(self) -> None:
        """Make whatever waits, and all that comes, fail; from any thread."""
        with contextlib.suppress(OSError):  # it is closed, or was by the other side
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._watch.close()
        self._selector.close()
        for sock in (self._sock, self._wake, self._woken):
            sock.close()


# ---- the server's end


class _Client(Admitted):
    """One accepted connection and the thread that serves it."""

    def __init__(self, listener: "Listener", sock: socket.socket, address: str, peer: str) -> None:
        owner = owner_of(address)
        super().__init__(owner, time.monotonic())
        self.sock = sock
        self.peer = peer
        self.session = Session(listener.server, peer, owner, watched=listener.watches)
        self.greet_by = self.since + listener.limits.greeting_timeout
        self.why = ""  # hung up on, and what for
        self.thread = threading.Thread(target=listener._serve, args=(self,), name=f"rpc {peer}", daemon=True)

    def refresh(self) -> None:
        self.busy, self.holds_memory = self.session.busy, bool(self.session.buffers.by_handle)

    def hang_up(self, why: str) -> None:
        """From any thread: end the computation and make the client's thread see the end of its stream."""
        self.leaving = True
        self.why = self.why or why
        self.session.abort()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Limits:
    """How many clients, and how long they may be silent, in seconds. `idle_timeout` None: as long as nobody needs the
    place, as stock clients expect. `unheard`: how long a client's machine may leave unanswered what was sent; as long as
    keepalive waits where nothing was."""

    max_clients: int = 64
    max_clients_of_one: int = 32  # of one address; on this machine each connection is a client of its own
    greeting_timeout: float = 10.0  # for all of HELLO, which every client sends at once
    idle_timeout: float | None = None
    unheard: float = SILENT


class Listener:
    """A server on a port: accepting from `__init__` on, until `close`.

    `port` 0 takes a free one; `address` says which. Connections beyond `limits` are closed at once. `comm`: the servers
    that it may add up tensors with (comm.py). `when_lost` is called when no device is left that computes (`Server.lost`),
    again and again. Raises DeviceError when the port cannot be had, or `comm` is wrong.
    """

    def __init__(
        self,
        server: Server,
        host: str = "127.0.0.1",
        port: int = 50052,
        *,
        limits: Limits | None = None,
        comm: Sequence[str] | None = None,
        when_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self.server = server
        self._when_lost = when_lost
        self.limits = limits or Limits()
        self._lock = threading.Lock()
        self._clients: dict[int, _Client] = {}  # by file descriptor
        self._closing = threading.Event()
        self._closed = threading.Event()
        self._untidy = threading.Event()  # a heavy client has left
        host = bare_host(host)
        where = join_endpoint(host, port)
        try:
            allowed = None if comm is None else allow_list(comm, look_up)
        except ValueError as error:
            raise DeviceError(f"--comm: {error}") from None
        if not 0 <= port < 65536:
            raise DeviceError(f"cannot listen on {where}: there is no such port")
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
            self._sock = socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
        except (OSError, UnicodeError) as error:  # a name whose parts are empty or too long is none for IDNA
            raise DeviceError(f"cannot listen on {where}: {getattr(error, 'strerror', None) or error}") from error
        self.address: tuple[str, int] = self._sock.getsockname()[:2]
        if allowed is None:  # its own machine's servers, where it is for its own machine alone
            allowed = LOOPBACK if is_local(self.address[0]) else NOBODY
        server.join = functools.partial(join, allowed, self.address[0])
        # a byte sent here wakes the threads that wait for sockets
        self._wake, self._woken = socket.socketpair()
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._threads = [threading.Thread(target=self._accept, name="rpc accept", daemon=True)]
        if self._epoll is not None:
            self._epoll.register(self._woken, select.EPOLLIN)
            self._threads.append(threading.Thread(target=self._watch, name="rpc watch", daemon=True))
        self._threads.append(threading.Thread(target=self._tick, name="rpc clock", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def endpoint(self) -> str:
        return join_endpoint(*self.address)

    @property
    def watches(self) -> bool:
        """Whether it sees a client leave while the client's own thread computes."""
        return self._epoll is not None

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
        if greeted := sum(client.session.greeted for client in clients):
            log.info("the server stops, with %d client%s", greeted, "" if greeted == 1 else "s")
        for client in clients:
            client.hang_up("the server stops")
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
        for sock, address, peer in self._accepted():
            with self._lock:
                if self._closing.is_set() or not self._has_place(address, peer):
                    sock.close()
                    continue
                try:
                    _tune(sock)
                    client = _Client(self, sock, address, peer)
                    self._clients[sock.fileno()] = client
                    if self._epoll is not None:
                        self._epoll.register(sock, select.EPOLLRDHUP)
                    client.thread.start()
                except (OSError, RuntimeError) as error:  # it is gone already; or there are no more threads to be had
                    log.warning("%s: %s", peer, error)
                    self._clients.pop(sock.fileno(), None)
                    sock.close()

    def _has_place(self, address: str, peer: str) -> bool:
        """Make room for one more, if that can be: whoever has been silent for long hangs up."""
        for client in self._clients.values():
            client.refresh()
        limits, now = self.limits, time.monotonic()
        try:
            leaver = make_room(
                self._clients.values(), owner_of(address), now, limits.max_clients, limits.max_clients_of_one
            )
        except FullError as error:
            log.warning("%s: turned away: %s", peer, error)
            return False
        if leaver is not None:
            leaver.hang_up(f"it made room for another, having been silent for {now - leaver.since:.0f} s")
        return True

    def _accepted(self) -> Iterator[tuple[socket.socket, str, str]]:
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
                yield sock, address[0], join_endpoint(*address[:2])

    def _serve(self, client: _Client) -> None:
        session, peer = client.session, client.peer
        log.debug("%s: connected", peer)
        level, why = logging.INFO, "left"
        try:
            self._converse(client)
        except (RemoteProtocolError, RefusedError) as error:
            level, why = logging.WARNING, f"connection closed: {error}"
            if session.gone:
                level, why = logging.INFO, "hung up while it was computed for"
        except TimeoutError:
            seconds = time.monotonic() - client.since
            what = "silent" if session.greeted else "no whole HELLO"
            level, why = logging.WARNING, f"connection closed: {what} for {seconds:.1f} s"
        except OSError as error:
            why = f"connection lost: {error.strerror or error}"
        except Exception:
            level, why = logging.ERROR, "connection closed by a fault of this server"
            log.exception("%s: %s", peer, why)
        if client.why:
            level, why = logging.INFO, f"connection closed: {client.why}"
        try:
            # the short connections that stock clients begin with are not worth a line
            figures, worth = session.figures.line(session.most_held), session.most_held > 0
            # every client that goes on after HELLO asks something
            if session.finished and not client.why and session.figures.requests == 1:
                why, worth = f"left when it heard that this server speaks protocol {session.protocol}", True
            log.log(level if worth or level > logging.INFO else logging.DEBUG, "%s: %s (%s)", peer, why, figures)
            if session.most_held + session.figures.received > HEAVY:
                self._untidy.set()
            session.close()
        except Exception:
            log.exception("%s: could not free all that the client had", peer)
        finally:
            self._forget(client)

    def _converse(self, client: _Client) -> None:
        """Serve a client until it leaves. Raises what ends it: TimeoutError, OSError, RemoteProtocolError, RefusedError."""
        sock, session = client.sock, client.session
        connection = ServerConnection(session.protocol, receiving=session.receiving)
        patient, requests = False, 0
        while not session.finished:
            if not patient:
                sock.settimeout(max(client.greet_by - time.monotonic(), 0.001))
            count = sock.recv_into(connection.space())
            connection.received(count)
            for frame in session.run(connection):
                send_pieces(sock, frame)
            if count >= STEADY or session.figures.requests > requests:
                client.since, requests = time.monotonic(), session.figures.requests
            if session.greeted and not patient:
                sock.settimeout(self.limits.idle_timeout)
                patient = True

    def _forget(self, client: _Client) -> None:
        with self._lock:
            self._clients.pop(client.sock.fileno(), None)
            if self._epoll is not None and not self._epoll.closed:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(client.sock)
        client.sock.close()
        log.debug("%s: disconnected", client.peer)

    def _tick(self) -> None:
        """End graphs that compute for longer than they may; hang up on machines that are lost; tell when no device is left;
        after heavy clients, give their memory back."""
        timeout = self.server.graph_timeout
        while not self._closing.wait(TICK if timeout is None else min(TICK, timeout / 4)):
            if self.server.lost is not None:
                self._when_lost()
            if timeout is not None:
                for served in self.server.devices:
                    served.end_overdue()
            self._leave_the_lost()
            if self._untidy.is_set():
                self._untidy.clear()
                for served in self.server.devices:
                    served.trim()
                gc.collect()
                trim()

    def _leave_the_lost(self) -> None:
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            if (seconds := unheard(client.sock, REPETITIONS)) >= self.limits.unheard and not client.leaving:
                client.hang_up(f"its machine has answered nothing for {seconds:.0f} s")

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
