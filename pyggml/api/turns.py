"""One context and several callers: one computes at a time, and of the streams that were begun only the newest goes on.

Owns the lock and the count of what was begun.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Self

from pyggml.errors import OvertakenError


class Turns:
    """`with turns:` waits until nobody else computes; within it the same thread may do so again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._newest = 0
        _ALL.add(self)

    def begin(self) -> int:
        """Something new uses the context from now on: its number, for `check`. Call it within the turn."""
        self._newest += 1
        return self._newest

    def check(self, number: int) -> None:
        """Raises OvertakenError when something else was begun since."""
        if number != self._newest:
            raise OvertakenError(
                "another call of this Llama began while this stream was under way, and a Llama has one context: "
                "end a stream before the next call, or load the model once for each stream"
            )

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *what: object) -> None:
        self._lock.release()

    def forked(self) -> None:
        """In a child process: a thread that held the lock does not exist here."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


_ALL: weakref.WeakSet[Turns] = weakref.WeakSet()


def _forked() -> None:
    for turns in list(_ALL):
        turns.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
