"""Admission control: so many clients at once, so many of one address, and who makes room for a newcomer.

Owns the decision; it must not know a socket or a request. Who is silent makes room: first those who never asked for
memory, then those who hold some and have been silent for long. A client that is computing, or whose bytes are coming,
is not silent.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from pyggml.errors import DeviceError

EMPTY_SILENCE = 2.0  # seconds after which a client without memory may be asked to make room
SILENCE = 30.0  # and one with memory


class FullError(DeviceError):
    """There is no room for one more client."""


@dataclass
class Admitted:
    """A client that is connected. `since` is when it last did something (seconds of some clock)."""

    owner: Hashable
    since: float
    busy: bool = False  # it is being computed for
    holds_memory: bool = False
    leaving: bool = False

    def patience(self) -> float:
        """Seconds of silence after which it may have to make room."""
        return SILENCE if self.holds_memory else EMPTY_SILENCE


P = TypeVar("P", bound=Admitted)


def make_room(admitted: Iterable[P], owner: Hashable, now: float, most: int, most_of_one: int) -> P | None:
    """The client that has to leave before one more of `owner` (None: of nobody in particular) may come; None if nobody
    has to. Raises FullError saying why nobody can."""
    present = [client for client in admitted if not client.leaving]
    own = [client for client in present if owner is not None and client.owner == owner]
    if len(own) >= most_of_one:
        return _silent(own, now, f"{len(own)} clients of its address are there")
    if len(present) >= most:
        return _silent(present, now, f"{len(present)} clients are there")
    return None


def _silent(admitted: list[P], now: float, why: str) -> P:
    able = [client for client in admitted if not client.busy and now - client.since > client.patience()]
    if not able:
        raise FullError(why)
    return min(able, key=lambda client: (client.holds_memory, client.since))
