"""Asynchronous copies from global to shared memory as the emulated GPU makes them: nobody sees what is copied before the thread
that began it has waited for its group.

Owns what lies there meanwhile: poison, from the moment at which a copy begins, so that who still reads what was there before is
found too. Copies that no group was made of are waited for by nobody, as on a GPU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

MOST_COPIES = 64
"""Of a thread, under way at once."""
TOO_MANY = 30

Helper = Callable[[str, str], Callable[[Any], Any]]


class Copies:
    """The copies under way: for each thread how many, how many groups it has made; of each copy source, address in this
    process to copy to, bytes, number of its group."""

    def __init__(self, threads: int) -> None:
        self.counts = np.zeros(threads * 2, np.int64)
        self.each = np.zeros(threads * MOST_COPIES * 4, np.int64)

    def register(
        self, numba: Any, helper: Helper, ints: Any, longs: Any, place: int, place_of: Any, check: Any, fail: Any
    ) -> Any:  # fmt: skip
        """The intrinsics. -> f(n), which forgets what n threads have begun. `check(address, size)` looks at a source, `place_of(to, size)`
        at a place in shared memory, which it tells in this process' memory; `place`: address of the running thread's number."""
        counts, each = self.counts.ctypes.data, self.each.ctypes.data

        def begin(shared: Any, address: Any, size: Any) -> None:
            check(address, size)
            to = place_of(shared, size)
            me = np.int64(ints(place)[0])
            c, e = longs(counts), longs(each)
            if c[2 * me] == MOST_COPIES:
                fail(np.int64(TOO_MANY), np.int64(address), np.int64(size))
            at = (me * MOST_COPIES + c[2 * me]) * 4
            e[at], e[at + 1], e[at + 2], e[at + 3] = address, to, size, c[2 * me + 1]
            c[2 * me] += 1
            for k in range(size // 4):
                ints(to)[k] = -1

        def wait(groups: Any) -> None:
            """Until all but the last so many groups are there."""
            me = np.int64(ints(place)[0])
            c, e = longs(counts), longs(each)
            left = 0
            for i in range(c[2 * me]):
                at = (me * MOST_COPIES + i) * 4
                if e[at + 3] < c[2 * me + 1] - groups:
                    for k in range(e[at + 2] // 4):
                        ints(e[at + 1])[k] = ints(e[at])[k]
                else:
                    to = (me * MOST_COPIES + left) * 4
                    e[to], e[to + 1], e[to + 2], e[to + 3] = e[at], e[at + 1], e[at + 2], e[at + 3]
                    left += 1
            c[2 * me] = left

        begin, wait = numba.njit(begin), numba.njit(wait)

        @helper("cp_async16", "void(int32,int64)")
        def cp_async16(to: Any, address: Any) -> None:
            begin(to, address, np.int64(16))

        @helper("cp_async8", "void(int32,int64)")
        def cp_async8(to: Any, address: Any) -> None:
            begin(to, address, np.int64(8))

        @helper("cp_async4", "void(int32,int64)")
        def cp_async4(to: Any, address: Any) -> None:
            begin(to, address, np.int64(4))

        @helper("cp_async_commit", "void()")
        def cp_async_commit() -> None:
            longs(counts)[2 * np.int64(ints(place)[0]) + 1] += 1

        @helper("cp_async_wait", "void()")
        def cp_async_wait() -> None:
            wait(0)

        @helper("cp_async_wait_one", "void()")
        def cp_async_wait_one() -> None:
            wait(1)

        @numba.njit
        def forget(n: Any) -> None:
            c = longs(counts)
            for i in range(2 * n):
                c[i] = 0

        return forget
