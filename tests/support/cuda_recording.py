"""A GPU that runs no kernel and takes notes, and tensors placed on a CUDA device."""

import ctypes
from typing import Any

from cuda_emulator import EmulatedGPU

from pyggml.backend.cuda.device import CudaDevice
from pyggml.kernels.cuda.spec import Spec
from pyggml.tensor import Tensor


class RecordingGPU(EmulatedGPU):
    """Runs no kernel; notes what it is asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.log: list[str] = []
        self.dropped = 0

    def load(self, spec: Spec) -> Spec:
        return spec

    def launch(self, kernel: Spec, grid: tuple[int, int, int], threads: int, shared: int, parameters: int) -> None:
        n = ctypes.c_int64.from_address(parameters).value  # address of the first parameter
        assert ctypes.c_int64.from_address(n).value is not None
        self.log.append(f"{'note' if self.captured is not None else 'launch'} {kernel.label}")
        if self.captured is not None:
            self.captured.append((kernel, grid, threads, shared, parameters))

    def replay(self, graph: Any) -> None:
        self.log.append(f"replay {len(graph)}")

    def drop(self, graph: Any) -> None:
        self.dropped += 1


class VirtualGPU(RecordingGPU):
    """One whose memory is addresses alone: models of any size are placed on it."""

    multiprocessors = 132
    shared_limit = 227 * 1024

    def __init__(self, **options: Any) -> None:
        super().__init__(memory=1 << 40, **options)
        self.next = 1 << 44
        self.sizes: dict[int, int] = {}

    def alloc(self, size: int) -> int:
        at, self.next = self.next, self.next + -(-max(size, 1) // 4096) * 4096 + 4096
        self.sizes[at] = size
        self.used += size
        return at

    def free(self, address: int) -> None:
        self.used -= self.sizes.pop(address)

    def fill(self, to: int, value: int, size: int) -> None:
        pass

    def upload(self, to: int, source: int, size: int) -> None:
        pass

    def download(self, to: int, source: int, size: int) -> None:
        ctypes.memset(to, 0, size)

    def copy(self, to: int, source: int, size: int) -> None:
        pass


def place(device: CudaDevice, *outputs: Tensor) -> None:
    """A buffer for each tensor that owns memory, and its views' places in it."""
    todo, seen = list(outputs), dict[int, Tensor]()
    while todo:
        t = todo.pop()
        if id(t) not in seen:
            seen[id(t)] = t
            todo += [s for s in (*t.src, t.view_src) if s is not None]
    for t in seen.values():
        if t.view_src is None:
            device.alloc_buffer(max(t.nbytes, 1)).place(t, 0)
    for t in seen.values():
        if t.view_src is not None:
            t.buffer, t.data = t.view_src.buffer, t.view_src.data + t.view_offs
