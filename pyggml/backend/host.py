"""Memory of this machine as a Buffer, and a tensor in it as a NumPy array. Knows no op and no kernel.

Both backends that compute in host memory use it: their tensors' addresses are real ones.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.base import Buffer, Bytes, Device, Usage
from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import DeviceError
from pyggml.tensor import Tensor

ALIGNMENT = 64
MAPPED = 1 << 20  # bytes from which a buffer is a mapping of its own: a process may have some ten thousand

ELEMENTS: dict[GGMLType, type[np.generic]] = {
    GGMLType.F32: np.float32,
    GGMLType.F16: np.float16,
    GGMLType.BF16: np.uint16,  # NumPy has no bfloat16: the bits
    GGMLType.F64: np.float64,
    GGMLType.I8: np.int8,
    GGMLType.I16: np.int16,
    GGMLType.I32: np.int32,
    GGMLType.I64: np.int64,
}


class HostBuffer(Buffer):
    """`memory` is all of it as bytes, `base` its real address, a multiple of 64 if it was allocated here."""

    def __init__(self, device: Device, memory: NDArray[np.uint8], usage: Usage = Usage.ANY) -> None:
        assert memory.dtype == np.uint8 and memory.ndim == 1 and memory.flags.c_contiguous
        self.device = device
        self.memory = memory
        self.base = int(memory.ctypes.data)
        self.size = memory.size
        self.usage = usage

    @classmethod
    def alloc(cls, device: Device, size: int, usage: Usage = Usage.ANY) -> HostBuffer:
        """`size` bytes, all zero. Raises DeviceError when they are not to be had."""
        assert size >= 0, size
        try:
            memory = _map(size) if size >= MAPPED else np.zeros(size + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError, OSError, OverflowError) as error:
            raise DeviceError(f"{device.name}: cannot allocate {size} bytes") from error
        start = -memory.ctypes.data % ALIGNMENT
        return cls(device, memory[start : start + size], usage)

    @classmethod
    def wrap(cls, device: Device, memory: Bytes, usage: Usage = Usage.WEIGHTS) -> HostBuffer:
        """Memory that exists already, such as a mapped file, which may be read-only; it is kept alive."""
        return cls(device, np.frombuffer(memory, np.uint8), usage)

    def bytes_of(self, tensor: Tensor, offset: int = 0, size: int | None = None) -> NDArray[np.uint8]:
        """`size` bytes (to the end of the tensor) from `offset`, not copied."""
        size = tensor.nbytes - offset if size is None else size
        assert offset >= 0 and size >= 0 and offset + size <= tensor.nbytes, (tensor, offset, size)
        start = tensor.data - self.base + offset
        assert start >= 0 and start + size <= self.size, (tensor, start, size, self.size)
        return self.memory[start : start + size]

    def set(self, tensor: Tensor, data: Bytes, offset: int = 0) -> None:
        content = np.frombuffer(data, np.uint8)
        self.bytes_of(tensor, offset, content.size)[:] = content

    def get(self, tensor: Tensor, offset: int = 0, size: int | None = None) -> bytes:
        return self.bytes_of(tensor, offset, size).tobytes()

    def memset(self, tensor: Tensor, value: int, offset: int = 0, size: int | None = None) -> None:
        self.bytes_of(tensor, offset, size)[:] = value

    def clear(self, value: int) -> None:
        self.memory[:] = value

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        if not isinstance(src.buffer, HostBuffer):
            return False
        self.bytes_of(dst, 0, src.nbytes)[:] = src.buffer.bytes_of(src)
        return True

    def free(self) -> None:
        self.memory = np.zeros(0, np.uint8)  # the bytes go when the last array over them does
        self.size = 0


def _map(size: int) -> NDArray[np.uint8]:
    """Memory of its own from the system: all zero without anybody clearing it, as pages come into being when they are
    first written, and given back as a whole. (calloc clears what the system did not give it as new pages.)"""
    options = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    memory = mmap.mmap(-1, size + ALIGNMENT, **options)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def default_threads() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_memory() -> tuple[int, int]:
    """Bytes (free, total) of the memory that this process may use; what the system can free counts as free.

    That is the machine's, or less where a control group (a container) limits it.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), free)
    except OSError:
        pass  # not Linux
    for files in _group_files():
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            limit, used = (int(path.read_text()) for path in files[:2])
            lines = files[2].read_text().splitlines()
            kept = next(int(line.split()[1]) for line in lines if "inactive_file" in line)
            total, free = min(total, limit), min(free, max(0, limit - used + kept))
    return free, total


@functools.cache
def _group_files() -> list[tuple[Path, Path, Path]]:
    """Where the control groups that this process is in, and those above them, tell limit, use, and what is cached."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        root = Path("/sys/fs/cgroup") / ("memory" if kinds else "")
        home = root / path.lstrip("/")
        found += [
            (folder / names[0], folder / names[1], folder / "memory.stat")
            for folder in (home, *home.parents)
            if folder.is_relative_to(root) and (folder / names[0]).exists()
        ]
    return found


def view_of(tensor: Tensor) -> NDArray[Any]:
    """The tensor's elements in place, any strides, writable if its memory is: shape ne reversed.

    Block types give bytes, shape (ne3, ne2, ne1, blocks, bytes a block); BF16 gives its bits as uint16.
    """
    buffer = tensor.buffer
    assert isinstance(buffer, HostBuffer), tensor
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    start = tensor.data - buffer.base
    element = ELEMENTS.get(tensor.type)
    if element is None:
        size = SIZES[tensor.type]
        shape = (*shape[:3], tensor.ne[0] // size.block_size, size.type_size)  # type: ignore[assignment]
        strides = (*strides, 1)  # type: ignore[assignment]
        element = np.uint8
    if 0 in shape:
        return np.zeros(shape, element)
    assert start >= 0, (tensor, start)
    return np.ndarray(shape, element, buffer.memory, start, strides)  # checks that all of it lies in the buffer
