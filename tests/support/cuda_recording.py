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


def place(device: CudaDevice, *outputs: Tensor) -> None:
    """A buffer for each tensor that owns memory."""
    todo, seen = list(outputs), set()
    while todo:
        t = todo.pop()
        if id(t) in seen:
            continue
        seen.add(id(t))
        if t.view_src is None:
            device.alloc_buffer(max(t.nbytes, 1)).place(t, 0)
        todo += [s for s in (*t.src, t.view_src) if s is not None]
        if t.view_src is not None:
            place(device, t.view_src) if not t.view_src.buffer else None
            t.buffer, t.data = t.view_src.buffer, t.view_src.data + t.view_offs
