"""A part of a tensor, as an operand of a step. Knows no op and no Numba."""

from __future__ import annotations

from pyggml.tensor import Tensor

Shape = tuple[int, int, int, int]


def window(whole: Tensor, ne: Shape, nb: Shape, offset: int) -> Tensor:
    """The elements of `whole` from `offset` bytes on that have this shape and these strides."""
    part = Tensor(whole.type, ne, nb)
    part.buffer, part.data = whole.buffer, whole.data + offset
    return part


def reaches_into_itself(t: Tensor) -> bool:
    """Whether elements may share bytes: some dimension's stride is shorter than what the shorter strides span."""
    end = 0
    size = t.nbytes - sum((n - 1) * nb for n, nb in zip(t.ne[1:], t.nb[1:], strict=True))  # a row
    for nb, n, length in sorted((nb, n, size) for n, nb in zip(t.ne[1:], t.nb[1:], strict=True) if n > 1):
        end = end or length
        if nb < end:
            return True
        end += (n - 1) * nb
    return False
