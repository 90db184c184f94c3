"""Nodes in another order, so that matrix multiplications of the same activations are neighbours, which one launch computes.

Owns when a node may come earlier: nothing in between makes what it reads, and no byte that it writes is read or written
in between.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyggml.ops import Op
from pyggml.tensor import Tensor

WINDOW = 16
"""So many nodes further on neighbours are looked for."""
MOST_COLUMNS = 8
"""With more columns a launch is long, and nothing is gained."""


def together(nodes: list[Tensor]) -> list[Tensor]:
    """Products that have the operand b and the type of a in common behind the first of them, each with the ADD that follows."""
    out = list(nodes)
    i = 0
    while i < len(out):
        first = out[i]
        if first.op != Op.MUL_MAT or first.ne[1] > MOST_COLUMNS:
            i += 1
            continue
        at = i + _unit(out, i)
        j, end = at, min(len(out), i + WINDOW)
        while j < end:
            if out[j].op != Op.MUL_MAT:
                j += 1
                continue
            size = _unit(out, j)
            if _alike(first, out[j]) and _may_come(out[j : j + size], out[at:j]):
                unit = out[j : j + size]
                del out[j : j + size]
                out[at:at] = unit
                at += size
            j += size
        i = at
    return out


def _unit(nodes: list[Tensor], i: int) -> int:
    """A product, and the ADD behind it that reads it, are one."""
    follows = i + 1 < len(nodes) and nodes[i + 1].op == Op.ADD
    return 2 if follows and any(s is nodes[i] for s in nodes[i + 1].src) else 1


def _alike(a: Tensor, b: Tensor) -> bool:
    """Of two products."""
    if a.src[1] is not b.src[1]:
        return False
    left, right = a.src[0], b.src[0]
    return left is not None and right is not None and left.type == right.type


def _span(t: Tensor) -> tuple[int, int]:
    return t.data, t.data + t.nbytes


def _share(t: Tensor, others: Iterable[Tensor]) -> bool:
    low, high = _span(t)
    return any(low < o.data + o.nbytes and o.data < high for o in others)


def _may_come(unit: list[Tensor], between: list[Tensor]) -> bool:
    read = [s for node in unit for s in node.src if s is not None and not any(s is u for u in unit)]
    if any(_share(s, between) for s in read):
        return False
    touched = [t for node in between for t in (node, *node.src) if t is not None]
    return not any(_share(node, touched) for node in unit)
