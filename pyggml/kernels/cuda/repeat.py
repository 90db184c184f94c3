"""REPEAT: one thread an element of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES
from pyggml.kernels.cuda.launch_args import AllExtents, Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import SINGLE, THREADS, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types(SINGLE, node, source(node, 0))


def lower(builder: Builder, node: Tensor) -> None:
    a, n = source(node, 0), node.nelements
    args = RepeatArgs(
        y=place(node), n=extents(node.ne), a=place(a), m=AllExtents(*a.ne), total=n, unit=SIZES[a.type].type_size
    )
    builder.launch(Spec("repeat", "repeat"), (blocks(n),), THREADS, args)


class RepeatArgs(NamedTuple):
    """`unit`: bytes of an element."""

    y: Place
    n: Extents
    a: Place
    m: AllExtents
    total: i32
    unit: i32


def repeat():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import moves, places

    place, move = places(), moves()

    @entry(RepeatArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, n0, n1, n2, a, a0, a1, a2, a3, m0, m1, m2, m3, total, unit):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            at = a + d.urem(i0, m0) * a0 + d.urem(i1, m1) * a1 + d.urem(i2, m2) * a2 + d.urem(i3, m3) * a3
            move(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, at, unit)

    return kernel
