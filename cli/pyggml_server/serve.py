"""A server from its first request to its last: listening, signals, an orderly end.

Owns uvicorn's part of it. Without requests nothing wakes it.
"""

import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import Callable
from functools import partial

import uvicorn
from pyggml_rpc.client import hang_up
from starlette.types import ASGIApp

from pyggml.errors import PyggmlError
from pyggml_server.answers import post_to
from pyggml_server.app import make_app
from pyggml_server.connections import protocol_of
from pyggml_server.listening import Accepted, listen
from pyggml_server.served import Served
from pyggml_server.settings import Settings
from pyggml_server.single import Single
from pyggml_server.zoo import Zoo
from pyggml_server.zoo_app import make_zoo_app

SWITCH = 0.0005  # seconds that a thread keeps the interpreter while others want it: the loop has little to do at a time
LAST = 3  # seconds for what is written already to reach its reader


Service = Served | Zoo | Single


class ServeError(PyggmlError):
    """Why the server cannot listen."""


class _Server(uvicorn.Server):
    """uvicorn's, which waits for `stop` instead of looking ten times a second whether it is to end."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self.settings = settings
        self.servers: list[asyncio.Server] = []
        self.stop = asyncio.Event()

    async def startup(self, sockets: object = None) -> None:
        """Listen. Raises ServeError."""
        config = self.config
        self.lifespan = config.lifespan_class(config)
        protocol = protocol_of(config, self.server_state, self.settings)
        accepted, port = Accepted(self.settings.most_connections), config.port
        for host in self.settings.hosts:
            try:
                self.servers += await listen(host, port, protocol, accepted, config.ssl, self.settings.header_timeout)
            except (OSError, UnicodeError) as reason:
                why = getattr(reason, "strerror", None) or reason
                raise ServeError(f"{host} port {port}: cannot listen there: {why}") from None
            port = self.port  # the others have the one that was free at the first address
        self.started = True

    async def main_loop(self) -> None:
        await self.stop.wait()

    @property
    def port(self) -> int:
        """The one that it listens on."""
        return int(self.servers[0].sockets[0].getsockname()[1])


def _config(served: Service) -> uvicorn.Config:
    settings = served.settings
    return uvicorn.Config(
        _app(served),
        host=settings.hosts[0],
        port=settings.port,
        ssl_keyfile=settings.ssl_key,
        ssl_certfile=settings.ssl_cert,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        timeout_keep_alive=60,
        timeout_graceful_shutdown=LAST,
    )


def _app(served: Service) -> ASGIApp:
    if isinstance(served, Single):
        return served.app
    return make_app(served) if isinstance(served, Served) else make_zoo_app(served)


def address(settings: Settings, port: int) -> str:
    """The server's, as a URL."""
    first = settings.hosts[0]
    host = f"[{first}]" if ":" in first else first
    return f"http{'s' if settings.ssl_cert else ''}://{host}:{port}{settings.api_prefix}"


def serve(
    served: Service, ready: Callable[[str], None], stopped: Callable[[Callable[[], None]], None] | None = None
) -> None:
    """Answer requests until SIGINT or SIGTERM: answers under way then get some seconds, at a second signal none.

    ready    called with the server's address once it listens
    stopped  called with what ends it, for who has no signals to send
    Raises ServeError where it cannot listen.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        asyncio.run(_serve(served, ready, stopped))
    finally:
        sys.setswitchinterval(before)
        served.loads.finish(hang_up)  # what was being loaded is closed, too
        served.close()


async def _serve(
    served: Service, ready: Callable[[str], None], stopped: Callable[[Callable[[], None]], None] | None
) -> None:
    loop = asyncio.get_running_loop()
    settings = served.settings
    try:
        server = _Server(_config(served), settings)
        server.config.load()
    except (OSError, ssl.SSLError) as reason:
        raise ServeError(f"{settings.ssl_key}, {settings.ssl_cert}: no key and certificate for TLS: {reason}") from None
    hurry = asyncio.Event()

    def end() -> None:
        if server.stop.is_set():
            hurry.set()
        served.ending = True
        server.stop.set()

    if stopped is not None:
        stopped(partial(_from_elsewhere, loop, end))
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not the main thread; not POSIX
            loop.add_signal_handler(number, end)
    served.start(post_to(loop))
    await server.startup()
    ready(address(settings, server.port))
    await server.main_loop()
    await _finish(served, hurry)
    await served.loads.run(served.close)
    await server.shutdown()


async def _finish(served: Service, hurry: asyncio.Event) -> None:
    """Wait for the answers under way, but not for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(served.settings.grace):
            while not served.idle and not hurry.is_set():
                await asyncio.sleep(0.05)


def _from_elsewhere(loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
    """Call it on the loop's thread, if the loop still runs."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(end)
