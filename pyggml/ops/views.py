"""RESHAPE, VIEW, PERMUTE, TRANSPOSE: new names for old bytes. Nothing here is computed."""

from __future__ import annotations

from collections.abc import Sequence

from pyggml.ops.numbers import Op
from pyggml.ops.rules import (
    Shape,
    need,
)
from pyggml.tensor import NO_PARAMS, Tensor, contiguous_strides, pack_params, view_of


def reshape(a: Tensor, *ne: int, name: str = "") -> Tensor:
    """The same elements in another shape. `a` must be contiguous."""
    full = _full(ne, Op.RESHAPE, a)
    if not a.is_contiguous:
        need(False, Op.RESHAPE, "the source is not contiguous", a)
    if full[0] * full[1] * full[2] * full[3] != a.nelements:
        need(False, Op.RESHAPE, f"{a.nelements} elements do not make {list(full)}", a)
    return view_of(a, Op.RESHAPE, NO_PARAMS, full, contiguous_strides(a.type, full), 0, name or a.name)


def _full(ne: Sequence[int], op: Op, a: Tensor) -> Shape:
    """Four dimensions. Raises ShapeError."""
    if not 1 <= len(ne) <= 4 or min(ne) < 0:
        need(False, op, f"{list(ne)} are no dimensions", a)
    return (*ne, 1, 1, 1)[:4]  # type: ignore[return-value]


def view(a: Tensor, ne: Sequence[int], strides: Sequence[int] = (), offset: int = 0, name: str = "") -> Tensor:
    """A part of `a`: shape `ne`, `strides` = nb[1:] in bytes (dense where not given), `offset` in bytes."""
    full = _full(ne, Op.VIEW, a)
    nb0, nb1, nb2, nb3 = contiguous_strides(a.type, full)
    given = len(strides)
    if given:
        nb1 = strides[0]
        nb2 = strides[1] if given > 1 else nb1 * full[1]
        nb3 = strides[2] if given > 2 else nb2 * full[2]
    else:
        nb0 = a.nb[0]
    result = view_of(a, Op.VIEW, pack_params("q", offset), full, (nb0, nb1, nb2, nb3), offset, name or a.name)
    root = a.view_src or a
    size, end = result.nbytes, root.nbytes
    if result.view_offs + size > end:
        need(False, Op.VIEW, f"{size} bytes at {result.view_offs} lie outside the {end} of the source", result, a)
    return result


def permute(a: Tensor, *axes: int, name: str = "") -> Tensor:
    """Dimension i of `a` becomes dimension axes[i] (ggml.c: ggml_permute)."""
    if sorted(axes) != [0, 1, 2, 3]:
        need(False, Op.PERMUTE, f"axes {list(axes)} are not a permutation of 0 to 3", a)
    ne, nb, (i, j, k, m) = a.ne, a.nb, map(axes.index, range(4))
    shape, strides = (ne[i], ne[j], ne[k], ne[m]), (nb[i], nb[j], nb[k], nb[m])
    return view_of(a, Op.PERMUTE, pack_params("4i", *axes), shape, strides, 0, name or a.name)


def transpose(a: Tensor, name: str = "") -> Tensor:
    """Rows become columns."""
    ne, nb = (a.ne[1], a.ne[0], a.ne[2], a.ne[3]), (a.nb[1], a.nb[0], a.nb[2], a.nb[3])
    return view_of(a, Op.TRANSPOSE, NO_PARAMS, ne, nb, 0, name or a.name)
