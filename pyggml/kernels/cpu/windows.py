"""A part of a tensor, as an operand of a step. Knows no op and no Numba."""

from __future__ import annotations

from pyggml.tensor import Tensor

Shape = tuple[int, int, int, int]


def window(whole: Tensor, ne: Shape, nb: Shape, offset: int) -> Tensor:
    """The elements of `whole` from `offset` bytes on that have this shape and these strides."""
    part = Tensor(whole.type, ne, nb)
    part.buffer, part.data = whole.buffer, whole.data + offset
    return part
