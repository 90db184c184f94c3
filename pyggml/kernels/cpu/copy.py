"""CPY, CONT, DUP: elements in order into another type, shape or stride. Knows no arithmetic.

Owns the walk through two shapes; rows are converted by elements.py. Source: ggml-cpu/ops.cpp: ggml_compute_forward_dup.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.kinds import kind, refuse_types

if TYPE_CHECKING:
    from pyggml.backend.cpu import Builder
    from pyggml.tensor import Tensor

T = GGMLType
WRITTEN = (T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q8_1, T.IQ4_NL)
"""The types whose elements elements.py writes; quantising to others is no work for an op."""

READ = (*WRITTEN, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_XS)
"""Those whose elements it reads."""

WHOLE = (GGMLType.F64, GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64)  # moved as they are, not converted


def why_not(node: Tensor) -> str | None:
    a = node.src[0]
    assert a is not None
    if a.type == node.type:
        return refuse_types([*WHOLE, *READ], node, a)
    if {a.type, node.type} == {GGMLType.F32, GGMLType.I32}:
        return None
    return refuse_types(WRITTEN, node) or refuse_types(READ, a)


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    if a.is_contiguous and node.is_contiguous:
        run = node.nelements
    else:
        run = math.gcd(a.ne[0], node.ne[0])
    builder.step(Spec("copy", "copy", (kind(node), kind(a))), node, (a,), ints=(run, node.nelements // run))


def copy(kind_d, kind_a):
    """-> kernel. ints: length of the runs that lie in one row of both, their number."""
    from pyggml.kernels.cpu import elements, record

    length, number = record.field("ints", 0), record.field("ints", 1)
    convert, block = elements.converter(kind_d, kind_a), max(elements.block_size(kind_d), elements.block_size(kind_a))
    start_d, start_a = _element("dst", elements.block_size(kind_d)), _element("src0", elements.block_size(kind_a))
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")
    piece, align = record.piece, max(16, block)

    def kernel(step, ith, nth):
        n, count = length(step), number(step)
        size = (piece(count, n, nth) + align - 1) // align * align
        pieces = (n + size - 1) // size
        sd, sa = nbd(step), nba(step)
        for item in range(count * pieces * ith // nth, count * pieces * (ith + 1) // nth):
            run, begin = item // pieces, item % pieces * size
            convert(start_d(step, run * n), sd, start_a(step, run * n), sa, begin, min(n, begin + size))

    return kernel


def _element(name, block):
    """-> f(step, e): address of element number e of an operand, in the order of its dimensions."""
    from pyggml.kernels.cpu import record

    n0, n1, n2 = (record.field(f"{name}.ne", i) for i in range(3))
    at = record.element(name)

    @inline
    def address(step, e):
        i1 = e // n0(step)
        i2 = i1 // n1(step)
        return at(step, e % n0(step) // block, i1 % n1(step), i2 % n2(step), i2 // n2(step))

    return address
