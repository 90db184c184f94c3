"""ADD SUB MUL DIV: one thread an element, the second operand repeated over the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import AllExtents, Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import FLOATS, KINDS, THREADS, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

NUMBERS = {Op.ADD: 0, Op.SUB: 1, Op.MUL: 2, Op.DIV: 3}


def why_not(node: Tensor) -> str | None:
    return refuse_types(FLOATS, node, source(node, 0), source(node, 1))


def lower(builder: Builder, node: Tensor) -> None:
    a, b = source(node, 0), source(node, 1)
    n = node.nelements
    args = BinaryArgs(
        y=place(node), ky=KINDS[node.type], a=place(a), ka=KINDS[a.type], b=place(b), kb=KINDS[b.type],
        n=extents(node.ne), m=AllExtents(*b.ne), total=n, op=NUMBERS[Op(node.op)],
    )  # fmt: skip
    builder.launch(Spec("elementwise", "binary"), (blocks(n),), THREADS, args)


class BinaryArgs(NamedTuple):
    y: Place
    ky: i32
    a: Place
    ka: i32
    b: Place
    kb: i32
    n: Extents
    m: AllExtents
    total: i32
    op: i32


def binary():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    load, store = access()
    place = places()

    @entry(BinaryArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, ky, a, a0, a1, a2, a3, ka, b, b0, b1, b2, b3, kb, n0, n1, n2, m0, m1, m2, m3, total, op,
    ):  # fmt: skip
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            x = load(a + i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3, ka)
            z = load(b + d.urem(i0, m0) * b0 + d.urem(i1, m1) * b1 + d.urem(i2, m2) * b2 + d.urem(i3, m3) * b3, kb)
            if op == 0:
                x = x + z
            elif op == 1:
                x = x - z
            elif op == 2:
                x = x * z
            else:
                x = x / z
            store(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, ky, x)

    return kernel
