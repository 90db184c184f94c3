"""What share of the cases that tests give to a device it computes, and what share it has to."""

import re
from typing import NamedTuple

from pyggml.kernels.cuda import FAMILIES
from pyggml.ops import Op

MIN_SHARE = 0.4
MIN_SHARE_OF = {("CUDA", Op.ADD): 0.15}  # cases of all types by all types; F32 and F16 are computed
MIN_SHARE_OF_PEER = 0.02  # it is asked for many types and layouts that only we compute
COUNTED = ("CPU", "CUDA", "peer")  # what the reference refuses is refused by definition


class Verdict(NamedTuple):
    """What is wrong; why a test that found nothing wrong has shown nothing either, or "" if it has."""

    wrong: list[str]
    absent: str


def has_no(device: str, op: Op) -> bool:
    """Whether the device does not have the op at all: test_supports.py sees that it refuses all cases."""
    return device == "CUDA" and op not in FAMILIES


def too_few(device: str, op: Op, computed: int, asked: int) -> str | None:
    """What is wrong with so few cases of a test that were computed; None = they are enough."""
    if has_no(device, op):
        return f"{op.name} is computed on {device} and has no line in its FAMILIES" if computed else None
    least = MIN_SHARE_OF_PEER if device == "peer" else MIN_SHARE_OF.get((device, op), MIN_SHARE)
    if computed >= least * asked:
        return None
    return f"{device} computes {computed} of {asked} cases of {op.name}; at least {least:.0%} are expected of it"


class Seen:
    """The cases of one test at a time."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Op], list[int]] = {}

    def count(self, device: str, op: Op, supported: bool) -> None:
        """Devices of a kind count as one."""
        counts = self._counts.setdefault((re.sub(r"\d+$", "", device), op), [0, 0])
        counts[0] += supported
        counts[1] += 1

    def begin(self) -> None:
        self._counts = {}

    def end(self) -> Verdict:
        counts = {key: n for key, n in self._counts.items() if key[0] in COUNTED}
        self._counts = {}
        wrong = [why for (device, op), n in counts.items() if (why := too_few(device, op, *n)) is not None]
        absent = [f"{device} does not have {op.name}" for device, op in counts if has_no(device, op)]
        return Verdict(wrong, absent[0] if absent and len(absent) == len(counts) else "")


seen = Seen()
