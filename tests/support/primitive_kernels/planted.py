"""Kernels and factories that misbehave on purpose, for tests/jit. Must not import Numba or simd."""

import os
import time


def _log(n):
    """A line with the number and the process, in the file that the test reads."""
    log = os.environ.get("PLANTED_LOG")
    if log:
        with open(log, "a") as file:
            file.write(f"{n} {os.getpid()}\n")


def number(n):
    """-> kernel(x): x + n; for "7" in place of 7 another number."""
    _log(n)
    add = n if isinstance(n, int) else 1000

    def kernel(x):
        return x + add

    return kernel


def slow(n):
    """As `number`; takes a second."""
    made = number(n)
    time.sleep(1.0)
    return made


def deadly(n):
    """Ends the process that compiles it."""
    os._exit(3)


def deadly_once(n):
    """As `number`; ends the first process that tries."""
    log = os.environ["PLANTED_LOG"]
    first = not os.path.exists(log)
    _log(n)
    if first:
        os._exit(3)
    return number(n)


def fails(n):
    """-> nothing: raises wherever it is compiled."""
    raise RuntimeError("planted")


def endless(n):
    """Does not return."""
    _log(n)
    time.sleep(600)


def allocates():
    """-> kernel(x): needs Numba's run time, which a process that only links does not have."""
    import numpy as np

    def kernel(x):
        return np.full(x, x).sum()

    return kernel
