"""A model that leaves memory when nobody has asked for anything for a while, and comes back with the next request.

Owns when it goes and comes; must not know how it is loaded. What asks about the server alone (health, properties, models, metrics, the
page) neither wakes it nor keeps it awake, as llama-server has it (tools/server/server-queue.cpp: server_queue, --sleep-idle-seconds).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from pyggml.errors import PyggmlError
from pyggml_server import page
from pyggml_server.engine import Post
from pyggml_server.errors import RequestError
from pyggml_server.guard import Guard
from pyggml_server.loads import Loads
from pyggml_server.served import Served
from pyggml_server.streams import error_answer

QUIET = ("/health", "/v1/health", "/props", "/models", "/v1/models", "/metrics")


class Sleeper:
    """opening   loads the model, and closes it; called on a thread
    make_app  the application of a model that is loaded
    seconds   without a request after which the model goes
    Made with the model loaded.
    """

    def __init__(
        self,
        opening: Callable[[], AbstractContextManager[Served]],
        make_app: Callable[[Served], Starlette],
        seconds: float,
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
        self.served = self._load()
        self.settings = self.served.settings
        prefix = self.settings.api_prefix
        self._quiet = {prefix + path for path in (*QUIET, *page.PATHS)}
        self._app: ASGIApp = make_app(self.served)
        self.app: ASGIApp = Guard(self._dispatch, self.settings)

    def _load(self) -> Served:
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
        self.served.start(post)
        self._rest()

    def close(self) -> None:
        """End after the present step; what is not complete fails."""
        if self._open is not None:
            self.served.close()
            opening, self._open = self._open, None
            opening.__exit__(None, None, None)

    # ---- requests

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            async with self._turn:
                if self.served.sleeping:
                    await self._wake()
            yield
        finally:
            self._users -= 1
            self._rest()

    def _rest(self) -> None:
        if not self._users and not self.served.sleeping:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._begin_to_sleep)

    def _begin_to_sleep(self) -> None:
        task = asyncio.get_running_loop().create_task(self._sleep())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sleep(self) -> None:
        async with self._turn:
            if self._users or self.served.sleeping or self.served.ending:
                return
            self.served.sleeping = True
            await self.loads.run(self.close)

    async def _wake(self) -> None:
        before = self.served
        try:
            served = await self.loads.run(self._load)
        except (PyggmlError, OSError, MemoryError) as reason:
            raise RequestError(f"the model cannot be loaded again: {reason}", status=503) from None
        served.engine.counters = before.engine.counters
        served.started, served.ending = before.started, before.ending
        served.start(self._post)
        self.served, self._app = served, self._make_app(served)
