"""Kernels and factories that misbehave on purpose, for tests/test_jit.py. Must not import Numba or simd."""

import os


def number(n):
    """-> kernel(x): x + n; for "7" in place of 7 another number."""
    log = os.environ.get("PLANTED_LOG")
    if log:
        with open(log, "a") as file:
            file.write(f"{n}\n")
    add = n if isinstance(n, int) else 1000

    def kernel(x):
        return x + add

    return kernel


def _in_the_helper():
    return os.environ.get("PLANTED_PARENT") == str(os.getppid())


def deadly(n):
    """As `number`; ends the second compiling process."""
    if _in_the_helper():
        os._exit(3)
    return number(n)


def fails_elsewhere(n):
    """As `number`; raises in the second compiling process."""
    if _in_the_helper():
        raise RuntimeError("planted")
    return number(n)


def fails(n):
    """-> nothing: raises wherever it is compiled."""
    raise RuntimeError("planted")


def endless(n):
    """Says so and does not return."""
    import time

    print("compiling", flush=True)
    time.sleep(600)


def allocates():
    """-> kernel(x): needs Numba's run time, which a process that only links does not have."""
    import numpy as np

    def kernel(x):
        return np.full(x, x).sum()

    return kernel
