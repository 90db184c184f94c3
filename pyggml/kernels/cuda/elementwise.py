"""ADD SUB MUL DIV: one thread an element, the second operand repeated over the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.kernels.cuda.layout import FLOATS, KINDS, THREADS, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32, i64
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
    args = (
        node.data, *node.nb, KINDS[node.type], a.data, *a.nb, KINDS[a.type], b.data, *b.nb, KINDS[b.type],
        *node.ne[:3], *b.ne, n, NUMBERS[Op(node.op)],
    )  # fmt: skip
    builder.launch(Spec("elementwise", "binary"), (blocks(n),), THREADS, args)


def binary():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    load, store = access()
    place = places()

    def kernel(
        y: i64, y0: i64, y1: i64, y2: i64, y3: i64, ky: i32, a: i64, a0: i64, a1: i64, a2: i64, a3: i64, ka: i32,
        b: i64, b0: i64, b1: i64, b2: i64, b3: i64, kb: i32, n0: i32, n1: i32, n2: i32, m0: i32, m1: i32, m2: i32,
        m3: i32, n: i32, op: i32,
    ):  # fmt: skip
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < n:
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

    kernel.threads = THREADS
    return kernel
