"""Threads for what loads and closes models: apart from those that prepare requests, so that neither waits for the other.

Owns their end. Who may load at the same time is the business of who asks.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
MOST = 64  # calls at once: more than anybody makes


class Loads:
    """Each call has a thread of its own while it runs."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="load")

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """The result of a call. Where nobody waits for it any more, it goes on all the same."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def finish(self) -> None:
        """Wait for the calls that have begun; further ones are not taken."""
        self._threads.shutdown(wait=True, cancel_futures=True)
