"""What the processes that run tests take of the machine: threads, memory of large arrays, the search for garbage, strategies.

Imported before NumPy and before anything of pyggml.
"""

import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

from hypothesis import strategies

# NumPy's threads wait for each other in a loop, which doubles what the tests take of the processor.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
    # glibc gives the memory of large arrays back at once, and the system clears each page of the next: up to a seventh of
    # the time of tests that compare logits
    libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, the most that it takes

from pyggml.backend import host, thread_pool

SEVERAL_THREADS = ("backend", "cuda", "jit", "kernels", "lowering", "ops", "simd")
"""Folders whose tests compute with a thread a core where they name no number. So do the others where one process runs tests;
where there is one a core (pytest-xdist) each computes with its share: threads that wait for each other take a sixth of the time."""
YIELDS = thread_pool.IDLE_YIELDS
CORES = host.default_threads()
_threads = CORES
host.default_threads = lambda: _threads  # others import it by its name


def share(folder: str) -> None:
    """Set how many threads tests of this folder have. Beside other processes, which have work for a core, those without any
    sleep at once, but where the threads themselves are tested."""
    global _threads
    thread_pool.IDLE_YIELDS = 0 if "PYTEST_XDIST_WORKER" in os.environ and folder != "backend" else YIELDS
    processes = 1 if folder in SEVERAL_THREADS else int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    _threads = max(1, CORES // processes)


def forget() -> None:
    """What is alive lives on, and is not looked through for garbage again: that took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


# What an example draws within it is a new strategy each time, which hypothesis examines anew but for the few kinds that it
# keeps itself: two fifths of the time of tests/ops/test_supports.py.
MOST_MADE = 20_000
"""Strategies of one kind; then they are made anew."""
_sampled_from, _composite = strategies.sampled_from, strategies.composite
_PLAIN = (int, str, bytes, type(None), Enum)


def _same(value: Any) -> Any:
    """What equal arguments share and others do not: 0, False, 0.0 and -0.0 are four. Raises TypeError for what may change."""
    if isinstance(value, (tuple, list)):
        return type(value), *map(_same, value)
    if isinstance(value, float):
        return float, repr(value)
    if not isinstance(value, _PLAIN):
        raise TypeError(value)
    return type(value), value


def made_once(make: Callable[..., strategies.SearchStrategy[Any]]) -> Callable[..., strategies.SearchStrategy[Any]]:
    """A function that makes strategies makes one of each for arguments that are plain values."""
    made: dict[Any, strategies.SearchStrategy[Any]] = {}

    @functools.wraps(make)
    def one(*args: Any, **options: Any) -> strategies.SearchStrategy[Any]:
        try:
            key = _same(args), *((name, _same(value)) for name, value in options.items())
        except TypeError:
            return make(*args, **options)
        if (found := made.get(key)) is None:
            if len(made) >= MOST_MADE:
                made.clear()
            found = made[key] = make(*args, **options)
        return found

    return one


strategies.sampled_from = made_once(_sampled_from)
strategies.composite = lambda function: made_once(_composite(function))
