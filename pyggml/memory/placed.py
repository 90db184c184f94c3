"""Memory on devices that is taken once, zero, and given back whole. Knows no layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pyggml.backend.base import Buffer, Device, Usage
from pyggml.backend.host import HostBuffer
from pyggml.backend.pack import pack
from pyggml.tensor import Tensor


class Placed(ABC):
    """`buffers`: what was taken."""

    buffers: list[Buffer]

    @abstractmethod
    def tensors(self, i: int) -> list[Tensor]:
        """Where layer number i keeps what it remembers."""

    def allocate(self, devices: Sequence[Device]) -> None:
        """`devices[i]` is where layer number i of this memory lies. Raises DeviceError; nothing is kept then."""
        try:
            for device in {id(d): d for d in devices}.values():
                here = [i for i, d in enumerate(devices) if d is device]
                self._take(device, [t for i in here for t in self.tensors(i)], self._beside(here))
        except BaseException:
            self.free()
            raise

    def _beside(self, here: Sequence[int]) -> list[tuple[Tensor, bytes]]:
        """What these layers, all those of a device, need there besides, and what is in it."""
        return []

    def _take(self, device: Device, kept: Sequence[Tensor], beside: Sequence[tuple[Tensor, bytes]]) -> None:
        buffers = pack(device, [*kept, *(tensor for tensor, _ in beside)], Usage.ANY)
        self.buffers += buffers
        for buffer in buffers:
            if not isinstance(buffer, HostBuffer):  # that one is zero, and its pages are not there yet
                buffer.clear(0)  # what no token has filled is multiplied by 0, but 0 x NaN would still be NaN
        for tensor, data in beside:
            assert tensor.buffer is not None
            tensor.buffer.set(tensor, data)

    @property
    def n_bytes(self) -> int:
        """Bytes on all devices."""
        return sum(buffer.size for buffer in self.buffers)

    def free(self) -> None:
        """Give the memory back; twice does nothing."""
        for buffer in self.buffers:
            buffer.free()
        self.buffers = []
