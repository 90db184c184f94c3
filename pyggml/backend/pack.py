"""Tensors that stay (weights, a KV cache) packed into as few buffers of a device as its size limit allows.

Owns their order and alignment.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyggml.backend.base import Buffer, Device, Usage
from pyggml.errors import DeviceError
from pyggml.tensor import Tensor


def pack(device: Device, tensors: Iterable[Tensor], usage: Usage) -> list[Buffer]:
    """Place the tensors, in order. Raises DeviceError when memory is missing; what was taken is given back then."""
    groups: list[list[tuple[Tensor, int]]] = []
    sizes: list[int] = []
    for tensor in tensors:
        size = -(-device.alloc_size(tensor) // device.alignment) * device.alignment
        if size > device.max_size:
            raise DeviceError(
                f"{device.name}: {tensor.name} needs {size} bytes, a buffer has at most {device.max_size}"
            )
        if not groups or sizes[-1] + size > device.max_size:
            groups.append([])
            sizes.append(0)
        groups[-1].append((tensor, sizes[-1]))
        sizes[-1] += size
    buffers: list[Buffer] = []
    try:
        for group, size in zip(groups, sizes, strict=True):
            buffer = device.alloc_buffer(size, usage)
            buffers.append(buffer)
            for tensor, offset in group:
                buffer.place(tensor, offset)
    except DeviceError:
        for buffer in buffers:
            buffer.free()
        raise
    return buffers
