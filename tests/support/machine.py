"""What the processes that run tests take of the machine: threads, memory of large arrays, the search for garbage, strategies.

Imported before NumPy and before anything of pyggml.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from hypothesis import strategies

# NumPy's threads wait for each other in a loop, which doubles what the tests take of the processor.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
    # glibc gives the memory of large arrays back at once, and the system clears each page of the next: up to a seventh of
    # the time of tests that compare logits
    libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, the most that it takes

from pyggml.backend import host

SEVERAL_THREADS = ("backend", "cuda", "jit", "kernels", "lowering", "ops", "simd")
"""Folders whose tests compute with a thread a core where they name no number. So do the others where one process runs tests;
where there is one a core (pytest-xdist) each computes with its share: threads that wait for each other take a sixth of the time."""
CORES = host.default_threads()
_threads = CORES
host.default_threads = lambda: _threads  # others import it by its name


def share(folder: str) -> None:
    """Set how many threads tests of this folder have."""
    global _threads
    processes = 1 if folder in SEVERAL_THREADS else int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    _threads = max(1, CORES // processes)


def forget() -> None:
    """What is alive lives on, and is not looked through for garbage again: that took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


_sampled_from = strategies.sampled_from


@cache
def _one_of(values: tuple[Any, ...], text: str) -> strategies.SearchStrategy[Any]:
    """The text tells 0 from False and -0.0, which are equal."""
    return _sampled_from(values)


def _kept(elements: Sequence[Any]) -> strategies.SearchStrategy[Any]:
    try:
        return _one_of(elements, repr(elements)) if isinstance(elements, tuple) else _sampled_from(elements)
    except TypeError:  # some have no hash
        return _sampled_from(elements)


# What an example draws within it is a new strategy each time, which hypothesis examines anew but for the few kinds that it
# keeps itself: a quarter of the time of tests/ops/test_supports.py.
strategies.sampled_from = _kept
