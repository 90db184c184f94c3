"""How much of waiting prompts a step computes beside the texts that are under way, so that these keep talking.

Owns the choice: as much as makes a step about twice as long as one without, measured on the steps so far; more
where more texts wait for their first token than wait for the next one.
"""

SMALLEST = 4  # tokens of a prompt in a step: with fewer it would take for ever
LONGER = (
    1.5  # times a step without prompts that tokens of one may add; what is measured varies, and 3 times is the promise
)
NEW = 0.2  # weight of the newest measurement


class Pace:
    """`largest` is what a step computes when nobody waits for a token."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self._plain: float | None = None  # seconds of a step of single tokens
        self._token: float | None = None  # seconds that a token of a prompt adds

    def room(self, running: int, waiting: int) -> int:
        """Tokens of prompts for the next step: a power of two, so that few graphs serve, or `largest`. `waiting`: texts whose prompts
        are not computed yet."""
        if not running:
            return self.largest
        if not self._plain or not self._token:
            return min(self.largest, 4 * SMALLEST)
        wanted = LONGER * max(1.0, waiting / running) * self._plain / self._token
        room = SMALLEST
        while 2 * room <= min(wanted, self.largest):
            room *= 2
        return min(room, self.largest)

    def took(self, seconds: float, running: int, n_prompt: int) -> None:
        """A step with a token of each of `running` texts and `n_prompt` of prompts."""
        if running and not n_prompt:
            self._plain = seconds if self._plain is None else (1 - NEW) * self._plain + NEW * seconds
        elif n_prompt >= SMALLEST:
            token = max(seconds - (self._plain or 0.0 if running else 0.0), seconds / 8) / n_prompt
            self._token = token if self._token is None else (1 - NEW) * self._token + NEW * token
