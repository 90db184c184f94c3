"""Connections, of which there are at most so many, and each of which must send a request's head soon and keep it short.

Owns these limits, around uvicorn's HTTP protocol; what a body may be is incoming.py's business.
"""

import asyncio
from collections import deque
from typing import Any, cast

import httptools
import uvicorn
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pyggml_server.errors import RequestError
from pyggml_server.settings import Settings
from pyggml_server.streams import dump

LARGEST_HEAD = 1 << 16  # bytes of a request line and its headers
WORDS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


class Unchunked(RequestResponseCycle):
    """A request of HTTP/1.0, which knows no chunks: where the answer's length is not told, its end is the connection's."""

    async def send(self, message: ASGISendEvent) -> None:
        """As ASGI has it."""
        if message["type"] == "http.response.start":
            if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding, self._open = False, True
        elif message["type"] == "http.response.body" and getattr(self, "_open", False):
            self.expected_content_length = len(message.get("body", b"")) + message.get("more_body", False)
        await super().send(message)


class Connection(HttpToolsProtocol):
    """One of them."""

    def __init__(self, config: uvicorn.Config, state: ServerState, settings: Settings) -> None:
        super().__init__(config, state, {})
        self._settings = settings
        self._timer: asyncio.TimerHandle | None = None  # set as long as the head of a request is awaited
        self._head = 0  # bytes of it so far
        self._apart = 0  # bytes since the last one of a body: what stands around its chunks, and headers behind it
        self._asked: deque[RequestResponseCycle] = deque()  # requests that are not answered, the oldest first
        self._wrong: tuple[int, str] | None = None  # what is refused once these are answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request's head is awaited."""
        if len(self.connections) >= self._settings.most_connections:
            self.transport = transport
            n = len(self.connections)
            self._refuse(503, f"{n} connections are open, at most {n} may be: come again later")
            return
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more, and nobody waits for any of the answers: uvicorn tells the newest one alone."""
        self._stop_waiting()
        for cycle in self._unanswered():
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A head that grows too long is refused, and so is what stands around a body."""
        if self._wrong is not None:
            return
        if self._timer is not None:
            self._head += len(data)
            if self._head > LARGEST_HEAD + (1 << 18 if b"\r\n\r\n" in data else 0):  # a body may follow in one piece
                self._refuse(431, f"the head of a request must have at most {LARGEST_HEAD} bytes")
                return
        if not self.transport.is_closing():
            self._apart += len(data)
            self._unset_keepalive_if_required()
            self._parse(data)
            if self._timer is None and self._apart > LARGEST_HEAD:
                self._refuse(431, f"what stands around a body must have at most {LARGEST_HEAD} bytes")

    def _parse(self, data: bytes) -> None:
        """A request that offers another protocol (HTTP/2 by Java and curl, a WebSocket) is read again without the offer: the
        parser takes what follows such a head for that protocol's, also a body."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                method = self.parser.get_method()
                if method != b"CONNECT":
                    kept = [(name, value) for name, value in self.headers if name != b"upgrade"]
                    lines = [b"%s %s HTTP/1.1" % (method, self.url), *(b"%s: %s" % header for header in kept)]
                    data = b"\r\n".join(lines) + b"\r\n\r\n" + data[offer.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)
                    continue
                self._refuse(400, "this is no proxy: CONNECT leads nowhere")
            except httptools.HttpParserError:
                self._refuse(400, "what came is not a request of HTTP/1.1")
            return

    def on_message_complete(self) -> None:
        """The body is there."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._apart = 0
        super().on_body(body)

    def on_message_begin(self) -> None:
        """A further request on the same connection."""
        super().on_message_begin()
        if self._timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Blanks around a value are no part of it (RFC 9110, 5.5); the parser leaves those behind it."""
        super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self.parser.should_upgrade():
            return
        self._stop_waiting()
        self._apart = 0
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            self.cycle.__class__ = Unchunked  # uvicorn makes it, and it has not begun
        self._asked.append(self.cycle)

    def on_response_complete(self) -> None:
        """What was wrong behind requests is told when the last of them is answered."""
        super().on_response_complete()
        left = self._unanswered()
        if self._wrong is not None and not left:
            self._refuse(*self._wrong)

    def _unanswered(self) -> deque[RequestResponseCycle]:
        while self._asked and self._asked[0].response_complete:
            self._asked.popleft()
        return self._asked

    def _await_head(self) -> None:
        self._head = 0
        self._timer = self.loop.call_later(self._settings.header_timeout, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        seconds = self._settings.header_timeout
        self._refuse(408, f"the head of a request did not come within {seconds:g} seconds")

    def _refuse(self, status: int, why: str) -> None:
        cycle = self.cycle
        if self.transport.is_closing():
            return
        before = [one for one in self._unanswered() if one is not cycle or not one.more_body]  # complete, and awaited
        if before:
            if cycle not in before:
                self._asked.remove(cycle)
                self.pipeline.popleft()
            self._wrong = status, why
            self._stop_waiting()
            return
        if cycle is not None and cycle.response_started and not cycle.response_complete:  # another answer has begun
            self.transport.close()
            return
        body = dump(RequestError(why, status=status).body())
        head = f"HTTP/1.1 {status} {WORDS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        more = "retry-after: 1\r\n" if status == 503 else ""
        self.transport.write(f"{head}{more}connection: close\r\n\r\n".encode() + body)
        self.transport.close()


def protocol_of(config: uvicorn.Config, state: ServerState, settings: Settings) -> Any:
    """Makes a connection's protocol."""
    return lambda: cast(asyncio.Protocol, Connection(config, state, settings))
