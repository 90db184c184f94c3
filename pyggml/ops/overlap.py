"""Which operands a result may lie on: the check of a placed node's addresses.

A client of the reference backend lays a result on an operand in two cases: where the op's builder makes it a view of that
operand (ggml.c: the *_inplace builders, ggml_cpy, ggml_set_rows), and where the allocator gives it the memory of an
operand that nobody reads afterwards (ggml-alloc.c: ggml_op_can_inplace, ggml_gallocr_allocate_node). Both times the
two have one address and one layout. All other results share no byte with what they are made of, and kernels count on it.
"""

from __future__ import annotations

from pyggml.dtypes import SIZES
from pyggml.errors import ShapeError
from pyggml.ops.numbers import Op
from pyggml.tensor import Tensor

IN_PLACE: dict[Op, tuple[int, ...]] = {}
"""For each op the sources that its result may lie on exactly: same type, shape, strides and address."""


def check_overlap(node: Tensor) -> None:
    """Raises ShapeError if a placed result shares bytes with a source that its op does not allow that for, or if its
    elements share bytes among themselves."""
    if node.buffer is None or 0 in node.ne:
        return
    if reaches_into_itself(node):
        raise ShapeError(
            f"{Op(node.op).name} {node.name!r}: elements of the result share bytes: {list(node.ne)}, strides"
            f" {list(node.nb)}"
        )
    low, buffer = node.data, node.buffer
    high = low + node.nbytes
    for index, source in enumerate(node.src):
        if source is None or source.buffer is not buffer or source is node:
            continue
        if source.data >= high or source.data + source.nbytes <= low:
            continue
        allowed = IN_PLACE.get(node.op, ())  # type: ignore[call-overload]  # an Op's hash is its number's
        if (index in allowed and same_place(node, source)) or not share_bytes(node, source):
            continue
        op = Op(node.op)
        base = node.buffer.base
        may = " or ".join(map(str, allowed))
        raise ShapeError(
            f"{op.name} {node.name!r}: the result, bytes {node.data - base} to {node.data - base + node.nbytes} of its"
            f" buffer, overlaps source {index}, {source.name!r}, bytes {source.data - base} to"
            f" {source.data - base + source.nbytes}; it may lie "
            + (f"on source {may} alone, in the same layout" if allowed else "on none")
        )


def same_place(a: Tensor, b: Tensor) -> bool:
    """Same bytes, seen in the same way (ggml-alloc.c: ggml_are_same_layout)."""
    if a.data != b.data or a.type != b.type or a.ne != b.ne:
        return False
    return a.nb == b.nb or all(n == 1 or x == y for n, x, y in zip(a.ne, a.nb, b.nb, strict=True))


def share_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors in one address space may share a byte.

    They do not if their stretches, from the first byte to the last, lie apart, or if both repeat with the same period and
    lie in different parts of it, as columns of one matrix do.
    """
    if 0 in a.ne or 0 in b.ne or not (a.data < b.data + b.nbytes and b.data < a.data + a.nbytes):
        return False
    for period in {nb for t in (a, b) for n, nb in zip(t.ne, t.nb, strict=True) if n > 1 and nb > 0}:
        distance = (b.data - a.data) % period
        if _length(a, period) <= distance <= period - _length(b, period):
            return False
    return True


def _length(t: Tensor, period: int) -> int:
    """Bytes that `t` takes of each period, from the first to the last: those of dimensions that do not step by it."""
    return SIZES[t.type].type_size + sum((n - 1) * nb for n, nb in _steps(t) if nb % period)


def _steps(t: Tensor) -> list[tuple[int, int]]:
    """(how many, bytes apart) of each dimension; the first counts blocks."""
    counts = (t.ne[0] // SIZES[t.type].block_size, *t.ne[1:])
    return list(zip(counts, t.nb, strict=True))


def reaches_into_itself(t: Tensor) -> bool:
    """Whether elements may share bytes: some dimension's stride is shorter than what the shorter strides span."""
    block, end = SIZES[t.type]
    (n0, n1, n2, _), (b0, b1, b2, b3) = t.ne, t.nb
    if b0 == end and b1 == n0 // block * end and b2 == b1 * n1 and b3 == b2 * n2:  # dense
        return False
    for nb, n in sorted((nb, n) for n, nb in _steps(t) if n > 1):
        if nb < end:
            return True
        end += (n - 1) * nb
    return False
