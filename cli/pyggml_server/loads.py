"""Threads for what loads and closes models: apart from those that prepare requests, so that neither waits for the other.

Owns their end. Who may load at the same time is the business of who asks.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 64  # calls at once: more than anybody makes
LAST_CALL, AGAIN = 3.0, 0.1  # seconds


class Loads:
    """Each call has a thread of its own while it runs."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="load")
        self._begun: set[Future[Any]] = set()

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """The result of a call. Where nobody waits for it any more, it goes on all the same."""
        call = self._threads.submit(function, *arguments)
        self._begun.add(call)
        call.add_done_callback(self._begun.discard)
        return await asyncio.wrap_future(call)

    def finish(self, give_up: Callable[[], None] = lambda: None) -> None:
        """Wait for the calls that have begun; further ones are not taken. After LAST_CALL `give_up` is to end what they may wait for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        _, left = wait(list(self._begun), LAST_CALL)
        while left:
            give_up()
            _, left = wait(left, AGAIN)
        self._threads.shutdown(wait=True)
