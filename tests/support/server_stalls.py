"""Users of a server whose number changes at random: how long each waits from one token of its answer to the next.

Owns the users and what was measured; must not know where the server runs. What holds a stream up for long is told as it happens.
"""

import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from serving import Client

WORDS = (
    "river",
    "train",
    "glass",
    "bee",
    "clock",
    "bread",
    "map",
    "salt",
    "paper",
    "bridge",
    "wool",
    "star",
    "rain",
    "letter",
)
LONG = 10  # times the usual gap
LEAST = 0.05  # seconds that a gap must have to be told
HELD = 0.25  # seconds by which this program itself was late: gaps meanwhile are not the server's


class Gap(NamedTuple):
    """Between two tokens: `seconds`, at so many seconds after the start, with so many users."""

    seconds: float
    at: float
    users: int


@dataclass
class Stalls:
    """What came of it. The usual gap is the median of those with about as many users (the same number of bits)."""

    gaps: list[Gap] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    answers: int = 0
    held: list[tuple[float, float]] = field(default_factory=list)  # when this program itself did not run
    lock: threading.Lock = field(default_factory=threading.Lock)

    def usual(self) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for gap in self.gaps:
            found.setdefault(gap.users.bit_length(), []).append(gap.seconds)
        return {bits: statistics.median(all_) for bits, all_ in sorted(found.items())}

    def long(self) -> list[Gap]:
        """The gaps that are long, the longest first."""
        usual = self.usual()
        found = [gap for gap in self.gaps if gap.seconds > max(LEAST, LONG * usual[gap.users.bit_length()])]
        return sorted((gap for gap in found if not self._held(gap)), reverse=True)

    def _held(self, gap: Gap) -> bool:
        return any(begin < gap.at and gap.at - gap.seconds < end for begin, end in self.held)


def change(client: Client, seconds: float, most: int, seed: int, stalled: Callable[[float], None]) -> Stalls:
    """Runs for so long with 0 to `most` users. `stalled` is called while a stream has waited for long, once for each time."""
    rng, found, begun = random.Random(seed), Stalls(), time.monotonic()
    wanted, running, done = 1, dict[int, float](), threading.Event()
    said: set[tuple[int, float]] = set()

    def user(number: int) -> None:
        own = random.Random(seed * 1000 + number)
        try:
            while not done.is_set() and number < wanted:
                prompt = " ".join(own.choice(WORDS) for _ in range(own.choice((3, 20, 100, 400))))
                body = {"prompt": prompt, "max_tokens": own.choice((16, 60, 200)), "ignore_eos": True}
                last = 0.0
                with client.open_stream("/v1/completions", body) as events:
                    for _ in events:
                        now = time.monotonic()
                        if last:
                            with found.lock:
                                found.gaps.append(Gap(now - last, now - begun, len(running)))
                        last = running[number] = now
                        if done.is_set() or own.random() < 0.0005:  # hangs up
                            break
                running.pop(number, None)
                found.answers += 1
        except Exception as reason:
            found.failed.append(f"user {number}: {reason!r}")
        finally:
            running.pop(number, None)

    users: dict[int, threading.Thread] = {}
    changes, usual, before = begun, dict[int, float](), begun
    while (now := time.monotonic()) < begun + seconds:
        if now - before > HELD:
            found.held.append((before - begun, now - begun + HELD))
        before = now
        if now >= changes:
            wanted = rng.choice((0, 1, 1, 2, rng.randrange(1, most + 1), most))
            changes = now + rng.uniform(0.5, 8)
        for number in range(wanted):
            if number not in users or not users[number].is_alive():
                users[number] = threading.Thread(target=user, args=(number,))
                users[number].start()
        with found.lock:
            usual = found.usual() if len(found.gaps) < 2000 else usual
        for number, last in list(running.items()):
            if now - last > max(LEAST, LONG * max(usual.values(), default=1.0)) and (number, last) not in said:
                said.add((number, last))
                stalled(now - last)
        time.sleep(0.02)
    done.set()
    for thread in users.values():
        thread.join(120)
        assert not thread.is_alive(), "a user waits for ever"
    return found
