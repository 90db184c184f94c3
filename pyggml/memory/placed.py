"""Memory on devices that is taken once and given back whole. Knows no layout."""

from __future__ import annotations

from pyggml.backend.base import Buffer


class Placed:
    """`buffers`: what was taken; a subclass fills the list."""

    buffers: list[Buffer]

    @property
    def n_bytes(self) -> int:
        """Bytes on all devices."""
        return sum(buffer.size for buffer in self.buffers)

    def free(self) -> None:
        """Give the memory back; twice does nothing."""
        for buffer in self.buffers:
            buffer.free()
        self.buffers = []
