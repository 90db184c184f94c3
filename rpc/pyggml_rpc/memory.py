"""Who holds how much of a memory that is on offer: a ledger a memory, an account a client.

Owns the limits (what is offered, one client's share of it) and the sums. Everything that a client causes to be kept is
taken from its account before it is made: buffers, work memory, graphs and frames that are still arriving. An account
that is closed gives everything back.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Hashable

from pyggml.errors import DeviceError

SHARE = 0.9  # of what the others have left, for one client
MARGIN = 1 << 30  # bytes of a device's memory that are never lent; a sixteenth of it where that is less
_libc = ctypes.CDLL(None) if os.name == "posix" else None
_malloc_trim = getattr(_libc, "malloc_trim", None)
_mallopt = getattr(_libc, "mallopt", None)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LITTLE, MOMENT = 1 << 20, 0.05  # bytes, seconds
AT_ONCE = 1 << 20  # bytes from which memory goes back to the system when it is freed
UNKNOWN = 1 << 62  # bytes; of a device that does not tell its memory


class NoRoomError(DeviceError):
    """More memory than there is on offer, or than one client may hold."""


def resident_bytes() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def return_early() -> None:
    """Have the C library give what is freed back to the system, for the rest of this process; where it is glibc.

    It would begin an arena for each of some threads, which keeps up to 64 MiB at its end that `malloc_trim` does not
    reach; and after the first large allocations that are freed it would no longer map such ones. The interpreter's lock
    lets one thread allocate at a time anyway.
    """
    if _mallopt is not None:
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, AT_ONCE), (M_TRIM_THRESHOLD, AT_ONCE)):
            _mallopt(option, value)


def trim() -> None:
    """Give memory that nobody uses any more back to the system, where the C library can do that."""
    if _malloc_trim is not None:
        _malloc_trim(0)


class Ledger:
    """The memory of one kind that clients may use.

    `memory` tells (free, total) bytes. Offered are `limit` bytes, or all, and never more than the total less a margin,
    nor than is free less that margin: where pages come into being when they are first written (`lazy`), what was lent and
    not yet written is still free in the system's eyes, and is taken off here. `share`: one owner may take no more than
    this part of what the other owners have left, so that something remains for the next however many there are.
    """

    def __init__(
        self,
        memory: Callable[[], tuple[int, int]],
        *,
        limit: int | None = None,
        share: float = SHARE,
        lazy: bool = True,
        margin: int = MARGIN,
    ) -> None:
        assert 0 < share <= 1, share
        self._memory = memory
        self._limit = limit
        self._share = share
        self._lazy = lazy
        self._margin = margin
        self._resident = resident_bytes()
        self._reading = 0, 0
        self._good_until = 0.0
        self._lock = threading.Lock()
        self._held: dict[Hashable, int] = {}
        self._sum = 0

    @property
    def held(self) -> int:
        """Bytes that all accounts hold."""
        return self._sum

    def _read(self, size: int) -> tuple[int, int]:
        """(free, total), which takes the system half a millisecond to tell: for little, as it was a moment ago."""
        if size > LITTLE or time.monotonic() > self._good_until:
            self._reading = self._memory()
            self._good_until = time.monotonic() + MOMENT
        return self._reading

    def offer(self, owner: Hashable) -> tuple[int, int]:
        """Bytes (free, total): what this owner may still take, and what all together may hold. (0, 0): not known."""
        free, total = self._memory()
        if not total:
            return 0, 0
        with self._lock:
            cap = self._cap(free, total)
            return max(0, self._room(owner, cap)), cap

    def _cap(self, free: int, total: int) -> int:
        """What all may hold together when so much is free in the system."""
        margin = min(self._margin, total // 16)
        touched = max(0, resident_bytes() - self._resident) if self._lazy else self._sum
        untouched = max(0, self._sum - touched)
        cap = min(max(0, total - margin), self._sum + max(0, free - margin - untouched))
        return cap if self._limit is None else min(cap, self._limit)

    def _room(self, owner: Hashable, cap: int) -> int:
        """What the owner may take beyond what it holds, of `cap` bytes for all; may be below 0."""
        held = self._held.get(owner, 0)
        others = self._sum - held
        return min(cap - self._sum, int((cap - others) * self._share) - held)

    def take(self, owner: Hashable, size: int) -> None:
        """Count `size` bytes as the owner's. Raises NoRoomError with the numbers."""
        assert size >= 0, size
        free, total = self._read(size)
        with self._lock:
            unknown = UNKNOWN if self._limit is None else self._limit
            room = max(0, self._room(owner, self._cap(free, total) if total else unknown))
            if size > room:
                raise NoRoomError(
                    f"no room for {size} bytes: {room} are left for this client, which holds "
                    f"{self._held.get(owner, 0)} of the {self._sum} in use"
                )
            self._held[owner] = self._held.get(owner, 0) + size
            self._sum += size

    def give(self, owner: Hashable, size: int) -> None:
        """An owner holds so many bytes less."""
        with self._lock:
            left = self._held.get(owner, 0) - size
            assert size >= 0 and left >= 0, (size, left)
            self._sum -= size
            if left:
                self._held[owner] = left
            else:
                self._held.pop(owner, None)


class Account:
    """What one connection holds of a ledger; several connections may have one owner. Thread-safe."""

    def __init__(self, ledger: Ledger, owner: Hashable) -> None:
        self.ledger = ledger
        self.owner = owner
        self.held = 0
        self.most = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Raises NoRoomError."""
        self.ledger.take(self.owner, size)
        with self._lock:
            self.held += size
            self.most = max(self.most, self.held)

    def give(self, size: int) -> None:
        """Give back so many of the bytes taken."""
        with self._lock:
            assert size <= self.held, (size, self.held)
            self.held -= size
        self.ledger.give(self.owner, size)

    def offer(self) -> tuple[int, int]:
        """(free, total) bytes, as this owner is told."""
        return self.ledger.offer(self.owner)

    def close(self) -> None:
        """Give back all that is left."""
        self.give(self.held)
