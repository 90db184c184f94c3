"""How much of waiting prompts a step computes beside the texts that are under way, so that these keep talking.

Owns the choice: as much as makes a step a little more than twice as long as one without, measured on the steps so far.
Where more texts wait for their first token than wait for the next one, more by the square of how many times as many, and
twice that for several, each of which waits for those before it: the first of those that come at once is not to hold up the
others. There is an end to that too: one token of an answer is not to wait for many times as long as the others did. Where even the smallest part takes longer, late in a long prompt, steps without one come between. Part of what a
step takes is the same for few tokens of a prompt and for many, so that each size is known by itself. Other programs come
and go: what was measured long ago is measured again.
"""

from collections import deque

SMALLEST = 4  # tokens of a prompt in a step: with fewer it would take for ever
LONGER = 1.25  # times a step without prompts that tokens of one may add; what is measured varies, and 3 is the promise
SEVERAL = 2  # times as much, where several wait
MOST = 24  # times LONGER, however many wait: what one text may have to wait for all the others
TWICE = 1.6  # times as long as half as many take, where it was not measured; it is 2 at most
HARDLY = 1.25  # times what the fewest add: that more may add, as the fewest are computed whatever they add
NEW = 0.2  # weight of the newest step without prompts
LAST = 3  # steps of a size that count: the quickest of them, as anything may hold up one
SAVED = 4  # steps' time for prompts that may be put by
OLD = 64  # steps with prompts after which what they were measured to add counts no more
STALE = 16  # and after which a step without prompts is measured again


class Pace:
    """`largest` is what a step computes when nobody waits for a token."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self._plain: dict[int, float] = {}  # seconds of a step of single tokens, by the bits of their number
        self._seen: dict[int, int] = {}  # and when that was measured last, in steps with prompts
        self._added: dict[int, deque[float]] = {}  # seconds that so many tokens of prompts add, of powers of two
        self._when: dict[int, int] = {}  # the step that was the last of that size
        self._steps = 0
        self._saved = 0.0  # seconds that steps were allowed to add, and did not

    def room(self, running: int, waiting: int) -> int:
        """Tokens of prompts for the next step: a power of two, so that few graphs serve, or `largest`; 0 for a step that
        shows how long one without prompts takes with so many texts, or that makes up for longer ones. `waiting`: texts whose
        prompts are not computed yet."""
        if not running:
            return self.largest
        plain = self._plain.get(running.bit_length())
        if plain is None or self._steps - self._seen[running.bit_length()] > STALE:
            return 0
        if not self._added:
            return min(self.largest, 4 * SMALLEST)
        others = (SEVERAL if waiting > 1 else 1) * (waiting / running) ** 2
        allowed = LONGER * min(max(1.0, others), MOST) * plain
        self._saved = min(self._saved + allowed, SAVED * allowed)
        if self._saved < min(self._expected(SMALLEST), SAVED * allowed):
            return 0
        if self._steps - self._when.get(SMALLEST, -STALE) < STALE:
            allowed = max(allowed, HARDLY * min(self._added[SMALLEST]))
        room = SMALLEST
        while 2 * room <= self.largest and self._expected(2 * room) <= allowed:
            room *= 2
        return min(room, self.largest)

    def _expected(self, size: int) -> float:
        """Seconds that so many add: as measured, or by what the next smaller size, or else the smallest, was measured to add;
        no more than a larger size, and no more for each token than a smaller one, as one measurement may be far off."""
        best = {n: min(times) for n, times in self._added.items()}
        known = max((n for n in best if n <= size), default=min(best))
        of_smaller = (2 ** (size.bit_length() - n.bit_length()) * seconds for n, seconds in best.items() if n < size)
        of_larger = (seconds for n, seconds in best.items() if n > size)
        own = best[known] * TWICE ** (size.bit_length() - known.bit_length())
        return float(min((own, *of_smaller, *of_larger)))

    def took(self, seconds: float, running: int, n_prompt: int) -> None:
        """A step with a token of each of `running` texts and `n_prompt` of prompts."""
        if running and not n_prompt:
            size = running.bit_length()
            before = self._plain.get(size, seconds)
            if self._steps - self._seen.get(size, 0) <= STALE:
                self._plain[size] = (1 - NEW) * before + NEW * seconds
            else:  # something may have held it up, but it is never quicker than it is
                self._plain[size] = min(seconds, (before + seconds) / 2)
            self._seen[size] = self._steps
        elif n_prompt >= SMALLEST:
            self._steps += 1
            size = 1 << (n_prompt.bit_length() - 1)
            added = max(seconds - self._plain.get(running.bit_length(), 0.0), seconds / 8)
            self._saved = max(self._saved - added, 0.0)
            added *= size / n_prompt
            self._added.setdefault(size, deque(maxlen=LAST)).append(added)
            self._when[size] = self._steps
            for old in [n for n, when in self._when.items() if when < self._steps - OLD]:
                del self._added[old], self._when[old]
