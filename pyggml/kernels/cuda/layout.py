"""What kernels ask of a tensor's layout, and its numbers as a launch's arguments.

GPUs fault on addresses that are no multiple of an element's size, so that odd strides are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyggml.dtypes import SIZES, GGMLType

if TYPE_CHECKING:
    from pyggml.tensor import Tensor

F32, F16, BF16, I32 = GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.I32
KINDS = {F32: 0, F16: 1, BF16: 2, I32: 3}
"""Numbers by which kernels know the types that they tell apart while they run."""
FLOATS = (F32, F16, BF16)
SINGLE = tuple(t for t in SIZES if SIZES[t].block_size == 1)
"""Types whose elements are no blocks."""
MOST = 2**31 - 1024
"""Kernels count elements in 32 bits."""
THREADS = 256


def alignment(dtype: GGMLType) -> int:
    """What addresses and strides must be a multiple of: blocks have 16-bit fields, those of MXFP4 bytes alone."""
    if dtype == GGMLType.MXFP4:
        return 1
    block_size, type_size = SIZES[dtype]
    return type_size if block_size == 1 and type_size in (1, 2, 4, 8) else 2


def refuse(*tensors: Tensor | None, by_matrix: bool = False) -> str | None:
    """Why kernels cannot walk one of these tensors. `by_matrix`: they count the elements of one matrix; where it begins
    they know in 64 bits."""
    for t in tensors:
        if t is None:
            continue
        size, step = SIZES[t.type], alignment(t.type)
        if any(b % step for b in t.nb) or t.view_offs % step:
            return f"{t.type.name} with strides {list(t.nb)} at {t.view_offs}: not multiples of {step}"
        if size.block_size > 1:
            if t.ne[0] % size.block_size:
                return f"row length {t.ne[0]} is not a multiple of the block size {SIZES[t.type].block_size} of {t.type.name}"
            if t.nb[0] != size.type_size:
                return f"blocks of {t.type.name} are {t.nb[0]} bytes apart"
        counted = t.ne[0] * t.ne[1] if by_matrix else t.nelements
        if counted > MOST:
            return f"{counted} elements, at most {MOST} are supported"
    return None


def refuse_types(allowed: Iterable[GGMLType], *tensors: Tensor, by_matrix: bool = False) -> str | None:
    """The reason if some tensor has none of the allowed types, or a layout that cannot be walked."""
    allowed = tuple(allowed)
    for t in tensors:
        if t.type not in allowed:
            return f"type {t.type.name} is not supported (supported: {', '.join(a.name for a in allowed)})"
    return refuse(*tensors, by_matrix=by_matrix)


def blocks(n: int, each: int = THREADS) -> int:
    """How many groups of `each` hold n."""
    return -(-n // each)


def source(node: Tensor, index: int) -> Tensor:
    tensor = node.src[index]
    assert tensor is not None
    return tensor


def option(node: Tensor, index: int) -> Tensor | None:
    """A source that may be absent."""
    return node.src[index] if index < len(node.src) else None


def apart(result: Tensor, *read: Tensor) -> bool:
    """Whether a kernel may write `result` while it reads these: their bytes lie apart, or element upon element."""
    low, high = result.data, result.data + result.nbytes
    for t in read:
        if low < t.data + t.nbytes and t.data < high and (t.data != low or t.nb != result.nb or t.ne != result.ne):
            return False
    return True


def disjoint(result: Tensor, *read: Tensor) -> bool:
    """Whether a kernel may write `result` in any order while it reads these."""
    low, high = result.data, result.data + result.nbytes
    for t in read:  # noqa: SIM110  # half of a generator's time, asked several times a product
        if low < t.data + t.nbytes and t.data < high:
            return False
    return True
