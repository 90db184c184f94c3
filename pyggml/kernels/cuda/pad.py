"""PAD, PAD_REFLECT_1D, ROLL: each element of the result from its place in the source, one thread an element."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES
from pyggml.kernels.cuda.launch_args import AllExtents, Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import SINGLE, THREADS, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

ZEROS, ROUND, MIRROR = range(3)
"""What lies beyond the source: zeros, the source again, its mirror image (in dimension 0)."""


def why_not(node: Tensor) -> str | None:
    return refuse_types(SINGLE, node, source(node, 0))


def lower(builder: Builder, node: Tensor) -> None:
    a, n = source(node, 0), node.nelements
    if node.op == Op.ROLL:
        beyond, before = ROUND, [node.param_i32(i) for i in range(4)]
    elif node.op == Op.PAD:
        beyond, before = (ROUND if node.param_i32(8) else ZEROS), [node.param_i32(2 * i) for i in range(4)]
    else:
        beyond, before = MIRROR, [node.param_i32(0), 0, 0, 0]
    if beyond == ROUND:
        before = [m - (-b) % m for b, m in zip(before, a.ne, strict=True)]  # so that i + m - before is not negative
    args = PadArgs(
        y=place(node), n=extents(node.ne), a=place(a), m=AllExtents(*a.ne), before=AllExtents(*before), beyond=beyond,
        total=n, unit=SIZES[a.type].type_size,
    )  # fmt: skip
    builder.launch(Spec("pad", "pad"), (blocks(n),), THREADS, args)


class PadArgs(NamedTuple):
    """`before`: elements of the result before the source's first one; `unit`: bytes of an element."""

    y: Place
    n: Extents
    a: Place
    m: AllExtents
    before: AllExtents
    beyond: i32
    total: i32
    unit: i32


def pad():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import moves, places, zeros

    place, move, clear = places(), moves(), zeros()

    @d.inline
    def inside(i, before, m, beyond):
        """The source's element; -1: there is none."""
        j = d.i32(i - before)
        if beyond == ROUND:
            return d.urem(d.i32(j + m), m)
        if beyond == MIRROR:
            j = abs(j)
            return d.i32(2 * (m - 1) - j) if j >= m else d.i32(j)
        return j if j < m else d.i32(-1)

    @entry(PadArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, n0, n1, n2, a, a0, a1, a2, a3, m0, m1, m2, m3, before0, before1, before2, before3, beyond,
        total, unit,
    ):  # fmt: skip
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            to = y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3
            i0, i1 = inside(i0, before0, m0, beyond), inside(i1, before1, m1, beyond)
            i2, i3 = inside(i2, before2, m2, beyond), inside(i3, before3, m3, beyond)
            if min(min(i0, i1), min(i2, i3)) < 0:
                clear(to, unit)
            else:
                move(to, a + i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3, unit)

    return kernel
