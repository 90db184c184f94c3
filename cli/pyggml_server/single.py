"""One model that is served, and that may be away: it leaves memory when nobody has asked for anything for a while, and when what
computes it is lost, such as an RPC server that was ended. It comes back with the next request; where something was lost, by itself too.

Owns when it goes and comes. What asks about the server alone (health, properties, models, metrics, the page) neither
wakes it nor keeps it awake, as llama-server has it (tools/server/server-queue.cpp: server_queue,
--sleep-idle-seconds).
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager

from pyggml_rpc.errors import RpcError
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from pyggml.errors import PyggmlError
from pyggml_server import page
from pyggml_server.engine import ENDING, FAILED, Post, cannot
from pyggml_server.errors import RequestError, told_of
from pyggml_server.guard import Guard
from pyggml_server.loads import Loads
from pyggml_server.served import Served
from pyggml_server.streams import error_answer

log = logging.getLogger("pyggml.server")
QUIET = ("/health", "/v1/health", "/props", "/models", "/v1/models", "/metrics")
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Seconds before each try to load a model that was lost; then the last one for ever."""


class Single:
    """opening   loads the model, and closes it; called on a thread
    make_app  the application of a model that is loaded
    seconds   without a request after which the model goes; None: it stays
    Made with the model loaded.
    """

    def __init__(
        self,
        opening: Callable[[], AbstractContextManager[Served]],
        make_app: Callable[[Served], Starlette],
        seconds: float | None = None,
    ) -> None:
        """Raises what loading raises."""
        self._opening, self._make_app, self.seconds = opening, make_app, seconds
        self._post: Post = lambda updates: None
        self.loads = Loads()
        self._turn = asyncio.Lock()  # who loads or closes
        self._users = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: AbstractContextManager[Served] | None = None
        self._tried = 0.0  # when it could last not be loaded
        self.served = self._load()
        self.settings = self.served.settings
        prefix = self.settings.api_prefix
        self._quiet = {prefix + path for path in (*QUIET, *page.PATHS)}
        self._app: ASGIApp = make_app(self.served)
        self.app: ASGIApp = Guard(self._dispatch, self.settings)

    def _load(self) -> Served:
        self.close()  # what is left of a model that was lost
        opening = self._opening()
        served = opening.__enter__()
        self._open = opening
        return served

    # ---- what a server needs (serve.py)

    @property
    def ending(self) -> bool:
        """Whether no further request is taken."""
        return self.served.ending

    @ending.setter
    def ending(self, value: bool) -> None:
        self.served.ending = value

    @property
    def idle(self) -> bool:
        """Whether no answer is under way."""
        return self.served.idle

    def start(self, post: Post) -> None:
        """Begin to work; updates go to `post`."""
        self._post = post
        self._begin(self.served)
        self._rest()

    def close(self) -> None:
        """End after the present step; what is not complete fails."""
        if self._open is not None:
            self.served.close(self.served.away or ENDING)
            opening, self._open = self._open, None
            opening.__exit__(None, None, None)

    # ---- requests

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._look()
        if scope["type"] != "http" or (scope["method"] in ("GET", "HEAD") and scope["path"] in self._quiet):
            await self._app(scope, receive, send)
            return
        try:
            async with self._awake():
                await self._app(scope, receive, send)
        except RequestError as reason:
            await error_answer(reason)(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _awake(self) -> AsyncIterator[None]:
        """The model is loaded meanwhile. Raises RequestError where it cannot be."""
        self._users += 1
        try:
            if self._timer is not None:
                self._timer.cancel()
            asked = time.monotonic()
            async with self._turn:
                if self.served.away and asked < self._tried + PAUSES[0]:  # who waited for a try shares what came of it
                    raise RequestError(self.served.away, status=503)
                if self.served.away or self.served.sleeping:
                    await self._wake()
            yield
        finally:
            self._users -= 1
            self._rest()

    def _rest(self) -> None:
        if self.seconds is not None and not self._users and not self.served.sleeping:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._spawn, self._sleep)

    def _spawn(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sleep(self) -> None:
        async with self._turn:
            if self._users or self.served.sleeping or self.served.away or self.served.ending:
                return
            self.served.sleeping = True
            await self.loads.run(self.close)

    async def _wake(self) -> None:
        """Load it. Raises RequestError."""
        before = self.served
        try:
            if before.ending:
                raise RequestError(ENDING, status=503)
            served = await self.loads.run(self._load)
        except Exception as reason:  # whatever it is: the log has it, and the next try may succeed
            self._tried = time.monotonic()
            told = self._told(reason)
            if before.away:
                before.away = told
            raise RequestError(told, status=503) from None
        served.engine.counters = before.engine.counters
        served.adapters = [(new, scale) for (new, _), (_, scale) in zip(served.adapters, before.adapters, strict=True)]
        served.started, served.ending = before.started, before.ending
        self.served, self._app = served, self._make_app(served)
        self._begin(served)
        if before.away:
            log.warning("%s is loaded again", served.name)

    def _told(self, reason: Exception) -> str:
        """What clients are told. The log has it too, once, but for RPC servers that do not answer."""
        before = self.served
        if isinstance(reason, RequestError):
            return str(reason)
        if isinstance(reason, PyggmlError | OSError | MemoryError):
            told = f"the model cannot be loaded again: {told_of(reason, before.path)}"
            if not isinstance(reason, RpcError) and told != before.away:
                log.warning("%s cannot be loaded again: %s", before.name, reason)
            return told
        log.exception("%s cannot be loaded again", before.name, exc_info=reason)
        return FAILED

    # ---- what is lost

    def _begin(self, served: Served) -> None:
        loop = asyncio.get_running_loop()

        def failed(why: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._lost, served, why)

        served.engine.on_failure = failed
        served.start(self._post)

    def _look(self) -> None:
        """Whether an RPC server has hung up meanwhile."""
        if not self.served.sleeping and (why := self.served.lost):
            self._lost(self.served, why)

    def _lost(self, served: Served, why: str) -> None:
        if served is not self.served or served.away or served.ending:
            return
        served.away = cannot(why)
        log.warning("%s cannot be computed: %s; it is loaded again as soon as that is possible", served.name, why)
        self._spawn(self._come_back)

    async def _come_back(self) -> None:
        async with self._turn:
            if self.served.away:
                await self.loads.run(self.close)
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            await asyncio.sleep(pause)
            async with self._turn:
                if not self.served.away or self.served.ending:
                    return
                with contextlib.suppress(RequestError):
                    await self._wake()
                    self._rest()
                    return
