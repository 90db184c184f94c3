"""The addresses where connections are accepted, and those that are closed before anybody else knows of them.

Owns the listening sockets. asyncio tells a protocol of a connection when its TLS handshake is over: so what is open is
counted here, from the moment on in which it is accepted.
"""

import asyncio
import socket
import ssl
import weakref
from collections.abc import Callable
from typing import Any

BACKLOG = 128  # connections that wait to be accepted; asyncio accepts them all at once
LATE = 4 * BACKLOG
"""Connections too many that are open at once at most, as one is accepted, refused and closed in steps."""


class Accepted:
    """What is open at all addresses: `most` connections, and LATE more that are about to be told that they are too many."""

    def __init__(self, most: int) -> None:
        self._most = most + LATE
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def add(self, connection: socket.socket) -> bool:
        """Whether it may stay open."""
        if len(self._open) >= self._most:
            for one in [one for one in self._open if one.fileno() < 0]:  # closed
                self._open.discard(one)
            if len(self._open) >= self._most:
                return False
        self._open.add(connection)
        return True


class Listening(socket.socket):
    """A listening socket that hangs up on what is too many."""

    def __init__(self, fileno: int, accepted: Accepted) -> None:
        super().__init__(fileno=fileno)
        self._accepted = accepted

    def accept(self) -> tuple[socket.socket, Any]:
        """As a socket's. Raises ConnectionAbortedError, which asyncio takes for a peer that has left."""
        connection, address = super().accept()
        if not self._accepted.add(connection):
            connection.close()
            raise ConnectionAbortedError
        return connection, address


async def listen(
    host: str,
    port: int,
    protocol: Callable[[], asyncio.BaseProtocol],
    accepted: Accepted,
    tls: ssl.SSLContext | None,
    patience: float,
) -> list[asyncio.Server]:
    """Accept connections at all addresses of the host. `patience`: seconds for the beginning of TLS, and for its end. Raises
    OSError, and UnicodeError for a name whose parts are empty or too long, which is none for IDNA."""
    loop = asyncio.get_running_loop()
    found = await loop.create_server(protocol, host, port, start_serving=False)
    seconds = None if tls is None else patience
    made = [
        await loop.create_server(
            protocol,
            sock=Listening(sock.dup().detach(), accepted),
            ssl=tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=seconds,
        )
        for sock in found.sockets
    ]
    found.close()
    return made
