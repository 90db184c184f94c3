"""Which Python is to run everything in `.ci/run`: prints one of the interpreters that are named to it, the first that can be
used, or a later one that is a tenth faster. Distributions build theirs with profiles of what programs do; one that is built
from source with the usual options takes a third longer for the same loop."""

from __future__ import annotations  # it has to say of an older Python that it is too old

import subprocess
import sys

WORTH = 0.9  # of the first one's time
TRIALS = 5
LOOP = """
import sys, time
if sys.version_info < (3, 11):
    sys.exit("too old")
import ensurepip, venv
def loop(n):
    total, seen = 0, {}
    for i in range(n):
        seen[i & 255] = (i, total)
        total += seen[i & 255][0] ^ 3
    return total
def timed():
    start = time.process_time()
    loop(200_000)
    return time.process_time() - start
print(min(timed() for _ in range(5)))
"""


def seconds(python: str) -> float | None:
    """What the loop takes it at best; None for one that cannot be used."""
    found = []
    for _ in range(TRIALS):
        try:
            done = subprocess.run([python, "-c", LOOP], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        found.append(float(done.stdout))
    return min(found)


def fastest(pythons: list[str]) -> str | None:
    best: tuple[str, float] | None = None
    for python in pythons:
        took = seconds(python)
        if took is not None and (best is None or took < WORTH * best[1]):
            best = python, took
    return best[0] if best else None


if __name__ == "__main__":
    chosen = fastest(sys.argv[1:])
    if chosen is None:
        sys.exit(
            f"none of these is a Python of 3.11 or later that can make virtual environments: {' '.join(sys.argv[1:])}"
        )
    print(chosen)
