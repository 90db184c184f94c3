"""Whether drafts are worth what they take: a step with drafts earns the seconds that its tokens would have taken without, and spends
its own.

Owns the choice, measured on the steps so far for each kind of load: what is quicker for one text, which waits for memory, is slower
for sixteen, which do not. Where drafts lose there are none, and they are tried again now and then: what a try is expected to lose has
been put by before, a small share of the seconds without. What a draft model computes of a prompt before it can guess counts, spread
over the drafts that come of it.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pyggml.runtime.timings import clock

SHARE = 0.03  # of the seconds without drafts, which tries may lose; 0.05 is the promise
CREDIT = 4  # steps' time without drafts that tries may lose at once, before there is experience with a kind of load
MOST_CREDIT = 16  # and that drafts that gained allow later ones to lose
FIRST_STEPS = 2  # without drafts, so that it is known what these take
TRY = 6  # steps with drafts that are a try
PAUSE = 8  # steps without drafts between two tries at least
WINDOW = 24  # steps with drafts that count
LEAST = 8  # without which drafts that have gained are not given up
GAIN = 1.02  # earned / spent from which a try has shown a gain; below 1 drafts are given up
HOPELESS = 0.6  # below which two steps are enough of a try
TOO_LONG = 6  # steps' time without drafts, which one with drafts is not to lose again
AGAIN = 64  # steps with drafts after which one without is measured again
OUTLIER = 2.5  # times the median of the steps with drafts that one of them counts at most: anything may hold up one
SPREAD = 32  # steps with drafts over which what was computed of prompts is spread
LACKING = 4  # tokens of each text that a draft model lacks in any step: more is a prompt


@dataclass
class _Load:
    """What is known of one kind of load."""

    steps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))  # (earned, spent)
    plain: dict[int, deque[float]] = field(default_factory=dict)  # seconds of the last steps without, by texts
    on: bool = False
    trying: int = 0  # steps that the try still has
    waited: int = PAUSE  # steps without drafts since the last one
    since_plain: int = 0  # steps with drafts since one without
    loss: float = 0.0  # seconds that the last try lost
    saved: float = 0.0  # seconds that tries may lose; below 0 they have lost more

    def seconds(self, running: int) -> float | None:
        """Of a step without drafts with so many texts, or about so many; None: not known."""
        if sum(map(len, self.plain.values())) < FIRST_STEPS:
            return None
        nearest = min(self.plain, key=lambda n: (abs(n - running), n))
        return statistics.median(self.plain[nearest])

    def totals(self) -> tuple[float, float]:
        """Seconds earned and spent."""
        longest = OUTLIER * statistics.median(spent for _, spent in self.steps)
        return sum(earned for earned, _ in self.steps), sum(min(spent, longest) for _, spent in self.steps)


class DraftPace:
    """Of the steps of one context: `begin`, make the drafts if that says so, `drafted`, compute, `end`.

    clock  seconds, of which those that happen once (kernels that are compiled, graphs that are made) are not part
    """

    def __init__(self, clock: Callable[[], float] = clock) -> None:
        self.clock = clock
        self._loads: dict[int, _Load] = {}
        self._debt = 0.0  # seconds of prompts in a draft model, not yet counted
        self._token = 0.0  # seconds that it takes for a token of a prompt
        self._before = (0, 0.0)  # tokens that it lacked in the last step, and seconds that were spent on them
        self._start = self._drafting = 0.0
        self._stop: float | None = None
        self._running = self._lacking = 0
        self._alone = self._wanted = self._any = False

    def begin(self, running: int, lacking: int = 0, alone: bool = True) -> bool:
        """A step with a token of each of `running` texts begins: whether drafts are to be made.

        lacking  tokens that a draft model would compute before it can guess, of all texts
        alone    the step computes no prompts beside
        """
        before, spent = self._before
        if before > lacking and spent:
            self._token = spent / (before - lacking)
        self._before = (0, 0.0)
        self._running, self._lacking, self._alone = running, lacking, alone
        self._start, self._stop, self._drafting, self._any = self.clock(), None, 0.0, False
        self._wanted = bool(running) and self._wants()
        return self._wanted

    def _wants(self) -> bool:
        load = self._loads.setdefault(self._running.bit_length(), _Load())
        plain = load.seconds(self._running)
        if plain is None:
            return False
        if load.on:
            return not self._alone or load.since_plain < AGAIN
        if not self._alone:
            return False
        if load.trying:
            return True
        if load.waited < PAUSE or load.saved < self._expected(load):
            return False
        load.trying = TRY
        load.steps.clear()
        return True

    def _expected(self, load: _Load) -> float:
        """Seconds that a try will lose, as far as is known."""
        return load.loss + self._lacking * self._token

    def drafted(self, some: bool) -> None:
        """The drafts are made, of some text or of none."""
        self._drafting, self._any = self.clock() - self._start, some

    def computed(self) -> None:
        """What follows until `end` is no part of the step."""
        self._stop = self.clock()

    def end(self, tokens: int) -> None:
        """The step has ended; so many tokens were chosen."""
        running = self._running
        seconds = (self.clock() if self._stop is None else self._stop) - self._start
        load = self._loads.get(running.bit_length())
        if load is None or not running:
            return
        known = True
        if self._wanted and self._lacking > LACKING * running:
            prompts = self._drafting
            if self._any:  # the rest of it is drafts
                known = self._token > 0
                prompts = min(prompts, self._lacking * self._token) if known else prompts
            self._before = (self._lacking, self._drafting)
            self._debt += prompts
            load.saved -= prompts
            seconds, self._drafting = seconds - prompts, self._drafting - prompts
        if not self._alone or not known:
            return
        if not self._any and self._drafting <= seconds / 8:
            self._took_plain(load, seconds)
        else:
            self._took(load, seconds, tokens)

    def _took_plain(self, load: _Load, seconds: float) -> None:
        if not load.plain:
            load.saved += CREDIT * seconds
        load.plain.setdefault(self._running, deque(maxlen=5)).append(seconds)
        load.waited += 1
        load.since_plain = 0
        self._save(load, SHARE * seconds)

    def _save(self, load: _Load, seconds: float) -> None:
        most = max(MOST_CREDIT * (load.seconds(self._running) or 0.0), self._expected(load))
        load.saved = min(load.saved + seconds, max(load.saved, most))

    def _took(self, load: _Load, seconds: float, tokens: int) -> None:
        plain = load.seconds(self._running)
        assert plain is not None, "no drafts before that is known"
        share = self._debt / SPREAD
        self._debt -= share
        earned = plain * tokens / self._running
        load.steps.append((earned, seconds + share))
        load.since_plain += 1
        self._save(load, earned - seconds)
        gained, spent = load.totals()
        if load.trying:
            load.trying -= 1
            hopeless = gained < HOPELESS * spent
            if hopeless and (len(load.steps) > 1 or spent - gained > TOO_LONG * plain):
                load.trying = 0
            if not load.trying:
                load.on = gained >= GAIN * spent
                self._settle(load, spent - gained)
        elif load.on and len(load.steps) >= LEAST and gained < spent:
            load.on = False
            self._settle(load, spent - gained)

    @staticmethod
    def _settle(load: _Load, loss: float) -> None:
        load.waited, load.loss = 0, max(0.0, loss)
