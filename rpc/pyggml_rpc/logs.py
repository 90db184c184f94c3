"""What the server's log says, and how often. Owns figures as text and the limit on repeated lines."""

import logging
import threading
import time
from collections.abc import Callable

MIB = 1 << 20
BURST = 20  # lines of one kind at once,
RATE = 1.0  # and so many a second after that
KINDS = 256


def mib(size: int) -> str:
    """Bytes as MiB, with a decimal where that says something."""
    return f"{size / MIB:.1f} MiB" if size < 100 * MIB else f"{size // MIB} MiB"


class LimitRate(logging.Filter):
    """Lets through so many lines of one kind; the next one that passes tells how many did not.

    A kind is a level and a message before its arguments are put in. Debug lines pass: who asks for them wants all.
    """

    def __init__(self, burst: int = BURST, rate: float = RATE, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._burst, self._rate, self._clock = burst, rate, clock
        self._lock = threading.Lock()
        self._kinds: dict[tuple[int, str], list[float]] = {}  # tokens, when they were counted, lines suppressed

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written (logging.Filter)."""
        if record.levelno < logging.INFO:
            return True
        now, key = self._clock(), (record.levelno, str(record.msg))
        with self._lock:
            if len(self._kinds) > KINDS:
                self._kinds.clear()
            tokens, before, suppressed = self._kinds.get(key, (float(self._burst), now, 0))
            tokens = min(float(self._burst), tokens + (now - before) * self._rate)
            passes = tokens >= 1
            self._kinds[key] = [tokens - 1, now, 0] if passes else [tokens, now, suppressed + 1]
        if passes and suppressed:
            record.msg = f"{record.getMessage()} ({int(suppressed)} more such lines were not written)"
            record.args = ()
        return passes
