"""Bytes between the host and a GPU, through pinned memory, so that the GPU fetches one part while the host writes the
next. Owns the ring of pinned chunks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.cuda.driver import GPU

CHUNK = 1 << 20
CHUNKS = 8


class Staging:
    """Calls of one GPU; whoever shares it between threads holds a lock."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self._memory: NDArray[np.uint8] | None = None
        self._events: list[Any] = []
        self._next = 0

    def _chunk(self) -> tuple[NDArray[np.uint8], Any]:
        """The chunk that was used longest ago, free again."""
        if self._memory is None:
            self._memory = self.gpu.pin(CHUNK * CHUNKS)
            self._events = [self.gpu.event() for _ in range(CHUNKS)]
        i, self._next = self._next, (self._next + 1) % CHUNKS
        self.gpu.wait(self._events[i])
        return self._memory[i * CHUNK : (i + 1) * CHUNK], self._events[i]

    def write(self, to: int, data: NDArray[np.uint8]) -> None:
        """Returns when `data` may change again; the GPU has it before whatever it is asked next."""
        for at in range(0, data.size, CHUNK):
            chunk, event = self._chunk()
            part = data[at : at + CHUNK]
            chunk[: part.size] = part
            self.gpu.upload(to + at, chunk.ctypes.data, part.size)
            self.gpu.record(event)

    def read(self, source: int, size: int) -> bytes:
        """What lies there after all that was asked before."""
        result = np.empty(size, np.uint8)
        pending: list[tuple[int, NDArray[np.uint8], Any]] = []

        def take() -> None:
            at, chunk, event = pending.pop(0)
            self.gpu.wait(event)
            part = result[at : at + CHUNK]
            part[:] = chunk[: part.size]

        for at in range(0, size, CHUNK):
            if len(pending) == CHUNKS:
                take()
            chunk, event = self._chunk()
            self.gpu.download(chunk.ctypes.data, source + at, min(CHUNK, size - at))
            self.gpu.record(event)
            pending.append((at, chunk, event))
        while pending:
            take()
        return result.tobytes()

    def close(self) -> None:
        if self._memory is not None:
            self.gpu.synchronize()
            self.gpu.unpin(self._memory)
            self._memory = None
