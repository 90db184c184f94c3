"""The connection between two servers that add up what each has computed: how it comes about, and what is swapped.

Owns its sockets and times. Rank 0 listens, rank 1 calls; each sends 24 bytes, in which a peer could offer another
transport (RDMA). What the other side says comes from whoever was called: 24 zeros is what a server of ours or of
llama.cpp over TCP says, and nothing else. A machine that is lost is noticed as a client notices its server's
(`unheard.py`). Facts: ggml-rpc.cpp, `comm_init`.
"""

import contextlib
import errno
import selectors
import socket
import time
from collections.abc import Callable

from pyggml_rpc.comm import LOWEST_PORT, AllowList, CommError
from pyggml_rpc.unheard import SILENT, UNHEARD, UnheardError, Watch, ask_when_silent
from pyggml_rpc.wire import CAPS

JOIN_TIMEOUT = 5.0  # seconds, for all of it
AGAIN = 0.05  # seconds between two calls of rank 1, and between two looks whether the client is still there
STALLED = 300.0  # seconds without a byte: the other server may be computing a large prompt
REFUSAL = 0.2  # seconds in which a machine refuses a connection, if it does


class Link:
    """One rank's end. `gone` is asked while it waits: whether nobody needs it any more. `unheard`: seconds for which the
    other machine may leave unanswered what was sent, before it is asked for a connection."""

    def __init__(self, sock: socket.socket, rank: int, gone: Callable[[], bool], unheard: float) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask_when_silent(sock)
        self._sock = sock
        self._gone = gone
        self._watch = Watch(sock, unheard)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self.rank = rank

    def swap(self, mine: memoryview, theirs: memoryview) -> None:
        """As many bytes there as back; rank 0 sends first and rank 1 receives first. Raises CommError."""
        moves = [(mine, "send"), (theirs, "receive")]
        for memory, way in moves if self.rank == 0 else moves[::-1]:
            self._move(memory, way)

    def _move(self, memory: memoryview, way: str) -> None:
        memory, since = memory.cast("B"), time.monotonic()
        while memory:
            try:
                count = self._sock.send(memory) if way == "send" else self._sock.recv_into(memory)
            except BlockingIOError:
                self._wait(way, since)
                continue
            except OSError as error:
                raise CommError(f"the other server: {error.strerror or error}") from error
            if not count:
                raise CommError(f"the other server hung up, {len(memory)} bytes too early")
            memory, since = memory[count:], time.monotonic()

    def _wait(self, way: str, since: float) -> None:
        if self._gone():
            raise CommError("the client is gone")
        if time.monotonic() - since > STALLED:
            raise CommError(f"nothing came from the other server for {STALLED:g} s")
        self._selector.modify(self._sock, selectors.EVENT_READ if way == "receive" else selectors.EVENT_WRITE)
        if not self._selector.select(AGAIN):
            try:
                self._watch.look()
            except UnheardError as error:
                raise CommError(f"the other server: {error}") from error

    def close(self) -> None:
        self._watch.close()
        self._selector.close()
        self._sock.close()


def look_up(name: str) -> list[str]:
    """The addresses of a host's name. Raises OSError."""
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})


def join(allowed: AllowList, here: str, rank: int, host: str, port: int, gone: Callable[[], bool]) -> Link:
    """The other rank, within JOIN_TIMEOUT. `here`: the address to listen at. Raises CommError saying why not."""
    if not LOWEST_PORT <= port < 65536:
        raise CommError(f"port {port} is not within {LOWEST_PORT} to 65535")
    until = time.monotonic() + JOIN_TIMEOUT
    try:
        sock = _accept(allowed, here, port, until, gone) if rank == 0 else _connect(allowed, host, port, until, gone)
        with contextlib.ExitStack() as failed:
            failed.callback(sock.close)
            _greet(sock, rank, until)
            link = Link(sock, rank, gone, UNHEARD if rank == 1 or _refuses(sock) else SILENT)
            failed.pop_all()
            return link
    except OSError as error:  # it broke, or no descriptor is left here
        raise CommError(f"no connection with the other server: {error.strerror or error}") from error


def _accept(allowed: AllowList, here: str, port: int, until: float, gone: Callable[[], bool]) -> socket.socket:
    family = socket.AF_INET6 if ":" in here else socket.AF_INET
    try:
        listening = socket.create_server((here, port), family=family, backlog=1)
    except OSError as error:
        raise CommError(f"cannot listen on port {port}: {error.strerror or error}") from error
    with listening:
        listening.settimeout(AGAIN)
        while time.monotonic() < until and not gone():
            with contextlib.suppress(TimeoutError):
                sock, address = listening.accept()
                if allowed.admits(address[0]):
                    return sock
                sock.close()
    raise CommError(f"no connection to port {port} within {JOIN_TIMEOUT:g} s")


def _connect(allowed: AllowList, host: str, port: int, until: float, gone: Callable[[], bool]) -> socket.socket:
    host = allowed.callable(host)
    reason: object = "no answer"
    while (left := until - time.monotonic()) > 0 and not gone():
        try:
            return socket.create_connection((host, port), min(left, 1.0))
        except OSError as error:  # the other may not listen yet
            reason = error.strerror or error
            time.sleep(AGAIN)
    raise CommError(f"cannot connect to {host} port {port}: {reason}")


def _refuses(sock: socket.socket) -> bool:
    """Whether the other machine refuses a connection where nobody listens, rather than say nothing, as some firewalls do: only
    then does silence prove anything. Who was called listens, or refuses."""
    with socket.socket(sock.family) as asking:
        asking.settimeout(REFUSAL)
        try:
            return asking.connect_ex(sock.getpeername()) in (0, errno.ECONNREFUSED)
        except OSError:
            return False


def _greet(sock: socket.socket, rank: int, until: float) -> None:
    """Rank 1 speaks first."""
    if rank == 1:
        sock.settimeout(max(until - time.monotonic(), 0.001))
        sock.sendall(bytes(CAPS))
    said = b""
    while len(said) < CAPS:
        sock.settimeout(max(until - time.monotonic(), 0.001))
        part = sock.recv(CAPS - len(said))
        if not part:
            raise CommError("the other side hung up on the greeting")
        said += part
    if any(said):
        raise CommError(f"the other side greets with {said[:8].hex()}..., not with zeros")
    if rank == 0:
        sock.sendall(bytes(CAPS))
