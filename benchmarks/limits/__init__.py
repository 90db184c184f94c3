"""What this machine can do at most: bytes read a second, integer multiply-adds a second.

Both are measured with small kernels (kernels.py) on some threads at once; a rate says more beside them.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from limits.kernels import DOT_COLUMNS, DOT_PRODUCTS, READ_BYTES
from pyggml import jit
from pyggml.jit import Spec

SIGNATURE = "void(u64,i64,u64)"
FAR = 1 << 28  # bytes, beyond any cache


class Limits:
    """`read()` in bytes a second, `dot()` in multiply-adds a second, of `n_threads` threads together."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._memory = np.ones(FAR, np.uint8)
        self._columns = DOT_COLUMNS[jit.level()]
        self._read = jit.function(Spec("limits.kernels", "read", (), SIGNATURE))
        self._dot = jit.function(Spec("limits.kernels", "dot", (self._columns,), SIGNATURE))
        self._out = np.zeros((n_threads, 1024 + 4096), np.uint8)

    def read(self) -> float:
        """One pass over memory that no cache holds, each thread over its part."""
        part = FAR // self.n_threads // READ_BYTES * READ_BYTES
        start = self._memory.ctypes.data
        seconds = self._together(lambda i: self._read(start + i * part, part, self._out[i].ctypes.data))
        return part * self.n_threads / seconds

    def dot(self, rounds: int = 500_000) -> float:
        """Byte products summed into 32-bit lanes, from registers and the first cache."""
        start = self._memory.ctypes.data
        seconds = self._together(lambda i: self._dot(start, rounds, self._out[i].ctypes.data))
        return float(DOT_PRODUCTS) * self._columns * rounds * self.n_threads / seconds

    def _together(self, work: Callable[[int], Any]) -> float:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(1, self.n_threads)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        return time.perf_counter() - start
