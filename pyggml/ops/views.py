"""RESHAPE, VIEW, PERMUTE, TRANSPOSE: new names for old bytes. Nothing here is computed."""

from __future__ import annotations

from collections.abc import Sequence

from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Shape,
    need,
)
from pyggml.tensor import NO_PARAMS, Tensor, contiguous_strides, pack_params


def _view(op: Op, a: Tensor, ne: Sequence[int], nb: Shape, offset: int, name: str, params: bytes = NO_PARAMS) -> Tensor:
    return Tensor(
        a.type, ne, nb, op=op, op_params=params, src=(a,), name=name or a.name,
        view_src=a.view_src or a, view_offs=a.view_offs + offset,
    )  # fmt: skip


def reshape(a: Tensor, *ne: int, name: str = "") -> Tensor:
    """The same elements in another shape. `a` must be contiguous."""
    full: Shape = (*ne, 1, 1, 1)[:4]  # type: ignore[assignment]
    count = full[0] * full[1] * full[2] * full[3]
    need(a.is_contiguous, Op.RESHAPE, "the source is not contiguous", a)
    if count != a.nelements:
        need(False, Op.RESHAPE, f"{a.nelements} elements do not make {list(full)}", a)
    return _view(Op.RESHAPE, a, full, contiguous_strides(a.type, full), 0, name)


def view(a: Tensor, ne: Sequence[int], strides: Sequence[int] = (), offset: int = 0, name: str = "") -> Tensor:
    """A part of `a`: shape `ne`, `strides` = nb[1:] in bytes (dense where not given), `offset` in bytes."""
    full: Shape = (*ne, 1, 1, 1)[:4]  # type: ignore[assignment]
    nb = list(contiguous_strides(a.type, full))
    nb[0] = a.nb[0] if not strides else nb[0]
    for i in range(1, 4):
        nb[i] = strides[i - 1] if i - 1 < len(strides) else nb[i - 1] * full[i - 1] if i > 1 else nb[i]
    result = _view(Op.VIEW, a, full, (nb[0], nb[1], nb[2], nb[3]), offset, name, pack_params("q", offset))
    root = a.view_src or a
    size, end = result.nbytes, root.nbytes
    if result.view_offs + size > end:
        need(False, Op.VIEW, f"{size} bytes at {result.view_offs} lie outside the {end} of the source", result, a)
    return result


def permute(a: Tensor, *axes: int, name: str = "") -> Tensor:
    """Dimension i of `a` becomes dimension axes[i] (ggml.c: ggml_permute)."""
    if sorted(axes) != [0, 1, 2, 3]:
        need(False, Op.PERMUTE, f"axes {list(axes)} are not a permutation of 0 to 3", a)
    ne, nb = [0] * 4, [0] * 4
    for i, axis in enumerate(axes):
        ne[axis], nb[axis] = a.ne[i], a.nb[i]
    return _view(Op.PERMUTE, a, ne, (nb[0], nb[1], nb[2], nb[3]), 0, name, pack_params("4i", *axes))


def transpose(a: Tensor, name: str = "") -> Tensor:
    """Rows become columns."""
    return _view(
        Op.TRANSPOSE, a, (a.ne[1], a.ne[0], a.ne[2], a.ne[3]), (a.nb[1], a.nb[0], a.nb[2], a.nb[3]), 0, name
    )  # fmt: skip
