"""Names for the type of a tensor and how its elements lie, as factories of kernels take them. Knows no kernel and no Numba."""

from __future__ import annotations

from collections.abc import Collection

from pyggml.dtypes import SIZES, GGMLType
from pyggml.tensor import Tensor

FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


SOURCES = ("f32", "f16", "bf16", "f32/", "f16/", "bf16/")
"""Layouts whose rows are quantised; a kernel that takes any of them is told the position in this list."""


def layout_of(tensor: Tensor) -> str:
    """The type's name in small letters, and "/" if the elements of a row lie apart."""
    size = SIZES[tensor.type]
    apart = tensor.nb[0] != size.type_size and tensor.ne[0] > size.block_size
    return tensor.type.name.lower() + "/" * apart


def refuse_types(allowed: Collection[GGMLType] | type[GGMLType], *tensors: Tensor | None) -> str | None:
    """Why one of the tensors cannot be computed with: its type, or blocks that lie apart or are no whole number."""
    for t in tensors:
        if t is None:
            continue
        if t.type not in allowed:
            return f"type {t.type.name} is not supported (supported: {', '.join(a.name for a in allowed)})"
        block = SIZES[t.type].block_size
        if t.ne[0] % block:
            return (
                f"row length {t.ne[0]} is not a multiple of the block size {SIZES[t.type].block_size} of {t.type.name}"
            )
        if block > 1 and t.nb[0] != SIZES[t.type].type_size:
            return f"blocks of {t.type.name} that lie apart"
    return None


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the stretches from the first to the last byte of two tensors overlap."""
    return a.data < b.data + b.nbytes and b.data < a.data + a.nbytes
