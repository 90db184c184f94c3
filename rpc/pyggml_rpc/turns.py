"""Turns at something that only so many clients can use at once: a device's time, or the lowering of graphs.

Owns who waits and who is next. Next is the owner who has used the least time so far, and of two connections of one
owner only one has a turn. Who comes anew, or back after a pause, begins with the least that anybody present has used:
time that was not used is not saved up.
"""

import threading
import time
from collections.abc import Callable, Hashable

from pyggml.errors import ComputeError

LOOK_AGAIN = 0.1  # seconds after which those who wait look whether somebody overstays
MOST_REMEMBERED = 1024  # owners whose time is known


class _Waiter:
    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.event = threading.Event()
        self.granted = False


class Turns:
    """`places` owners have a turn at once; one who has had it for longer than `overstay` seconds does not count, but all
    together are at most `most`."""

    def __init__(
        self,
        places: int = 1,
        clock: Callable[[], float] = time.monotonic,
        overstay: float | None = None,
        most: int | None = None,
    ) -> None:
        self._places = places
        self._overstay = overstay
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[Hashable, float] = {}  # since when
        self._waiting: list[_Waiter] = []
        self._used: dict[Hashable, float] = {}  # seconds, of those present
        self._least = 0.0

    def take(self, owner: Hashable, left: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait for a turn; `give` ends it. Raises ComputeError when `left()`, which `wake` makes it ask again, or after
        `timeout` seconds."""
        with self._lock:
            self._used[owner] = max(self._used.get(owner, 0.0), self._least)
            if not self._running and not self._waiting:  # mostly so: nothing to wait with is made
                self._begin(owner)
                waiter = None
            else:
                waiter = _Waiter(owner)
                self._waiting.append(waiter)
                self._grant()
        if waiter is not None:
            self._wait(waiter, left, timeout)
        if left():
            self.give(owner)
            raise ComputeError("the client is gone")

    def _wait(self, waiter: _Waiter, left: Callable[[], bool], timeout: float | None) -> None:
        until = None if timeout is None else self._clock() + timeout
        while not waiter.granted:
            pause = None if until is None else max(0.0, until - self._clock())
            if self._overstay is not None:
                pause = min(LOOK_AGAIN, LOOK_AGAIN if pause is None else pause)
            waiter.event.wait(pause)
            with self._lock:
                self._grant()
                if waiter.granted:
                    break
                waiter.event.clear()
                late = until is not None and self._clock() >= until
                if late or left():
                    self._waiting.remove(waiter)
                    raise ComputeError("no turn came in time" if late else "the client is gone")

    def give(self, owner: Hashable) -> None:
        """The turn of an owner ends, and its seconds count."""
        with self._lock:
            self._used[owner] += self._clock() - self._running.pop(owner)
            if self._waiting:
                self._grant()
            if len(self._used) > MOST_REMEMBERED:
                self._prune()

    def wake(self) -> None:
        """Have those who wait ask whether their clients are still there."""
        with self._lock:
            for waiter in self._waiting:
                waiter.event.set()

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def _grant(self) -> None:
        while self._inside() < self._places and (self._most is None or len(self._running) < self._most):
            able = [waiter for waiter in self._waiting if waiter.owner not in self._running]
            if not able:
                return
            # the first of those who have used the least
            chosen = min(able, key=lambda waiter: self._used[waiter.owner])
            self._waiting.remove(chosen)
            self._begin(chosen.owner)
            chosen.granted = True
            chosen.event.set()

    def _begin(self, owner: Hashable) -> None:
        self._least = max(self._least, self._used[owner])
        self._running[owner] = self._clock()

    def _inside(self) -> int:
        if self._overstay is None:
            return len(self._running)
        return sum(self._clock() - since < self._overstay for since in self._running.values())

    def _prune(self) -> None:
        """Forget owners that are not here, those with the least time first, when there are too many."""
        present = {waiter.owner for waiter in self._waiting} | set(self._running)
        absent = sorted((o for o in self._used if o not in present), key=lambda owner: self._used[owner])
        for owner in absent[: MOST_REMEMBERED // 2]:
            del self._used[owner]
