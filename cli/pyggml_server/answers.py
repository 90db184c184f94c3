"""The texts of one request, awaited on the event loop: what the engine says of them, and their end if the client leaves.

Owns the way from the engine's thread to the loop and back.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Self, TypeVar

from starlette.requests import Request

from pyggml.errors import GrammarError, PyggmlError, SamplerError
from pyggml.runtime.sequence import Finish
from pyggml.runtime.sequence import Sequence as Text
from pyggml_server.engine import Engine, Post, Task, Update
from pyggml_server.errors import RequestError, without_places

T = TypeVar("T")


class ClientGone(Exception):
    """The client has hung up: nobody is there to be answered."""


def post_to(loop: asyncio.AbstractEventLoop) -> Post:
    """For an engine: updates are delivered on the loop's thread, all of a step at once."""

    def deliver(updates: list[tuple[Task, Update]]) -> None:
        for task, update in updates:
            task.deliver(update)

    def post(updates: list[tuple[Task, Update]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, updates)

    return post


class Answer:
    """`async with` submits the texts and, at the end, cancels what is not complete; iterating gives (which text, update).
    `tells`, `completion` and `controlled` are Task's."""

    def __init__(
        self,
        engine: Engine,
        texts: Sequence[Text],
        client: str,
        tells: bool = False,
        completion: str = "",
        controlled: bool = False,
    ) -> None:
        self._engine = engine
        self._updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()
        self.texts = texts
        self.tasks = [
            Task(text, partial(self._got, i), client, tells, completion, controlled) for i, text in enumerate(texts)
        ]
        self._left = len(texts)

    def _got(self, i: int, update: Update) -> None:
        self._updates.put_nowait((i, update))

    async def __aenter__(self) -> Self:
        """Raises RequestError where the queue is full."""
        self._engine.submit(self.tasks)
        return self

    async def __aexit__(self, *what: object) -> None:
        if self._left:
            self._engine.cancel(self.tasks)

    async def next(self, timeout: float | None = None) -> tuple[int, Update] | None:
        """What comes next; None after `timeout` seconds without. Raises RequestError when a text fails."""
        try:
            i, update = await asyncio.wait_for(self._updates.get(), timeout)
        except TimeoutError:
            return None
        if update.finish is not None:
            self._left -= 1
        if update.finish is Finish.FAILED:
            raise _failed(update.error)
        return i, update

    async def each(self) -> AsyncIterator[tuple[int, Update]]:
        """All updates of all texts."""
        async for got in self.each_or_pause(0):
            assert got is not None
            yield got

    async def each_or_pause(self, pause: float) -> AsyncIterator[tuple[int, Update] | None]:
        """As `each`, and None after each `pause` seconds in which nothing comes; 0: never."""
        while self._left:
            yield await self.next(pause or None)


def _failed(error: Exception | None) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, GrammarError | SamplerError):
        return RequestError(f"no token could be chosen: {error}")
    if isinstance(error, PyggmlError):
        return RequestError(f"the model could not be computed: {without_places(str(error))}", status=500)
    return RequestError("the model could not be computed; the server's log says more", status=500)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which ends at once when the client hangs up. The body has to be read before. Raises ClientGone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for future in (working, leaving):
            future.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def in_thread(function: Callable[[], T]) -> T:
    """A function's result, computed on another thread, so that the loop serves others meanwhile."""
    return await asyncio.to_thread(function)
