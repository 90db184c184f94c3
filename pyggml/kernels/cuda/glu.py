"""GLU: a function of one half times the other half."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.kernels.cuda.layout import FLOATS, KINDS, THREADS, blocks, option, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    a, b = source(node, 0), option(node, 1)
    return refuse_types(FLOATS, node, a, *(() if b is None else (b,)))


def lower(builder: Builder, node: Tensor) -> None:
    a, b = source(node, 0), option(node, 1)
    n = node.nelements
    x, gate = a.data, 0 if b is None else b.data
    nb = a.nb
    if b is None:
        half = a.nb[0] * node.ne[0]
        x, gate = (a.data + half, a.data) if node.param_i32(1) else (a.data, a.data + half)
    else:
        nb = b.nb
    args = (
        node.data, *node.nb, KINDS[node.type], x, *a.nb, gate, *nb, KINDS[a.type], *node.ne[:3], n,
        node.param_i32(0), node.param_f32(2), node.param_f32(3),
    )  # fmt: skip
    builder.launch(Spec("glu", "glu"), (blocks(n),), THREADS, args)


def glu():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places
    from pyggml.kernels.cuda.functions import gates

    load, store = access()
    place = places()
    silu, gelu, gelu_quick, gelu_erf, sigmoid = gates()

    @d.inline
    def least(x, limit):
        """The smaller one; NaNs stay."""
        return limit if x > limit else x

    def kernel(
        y: i64, y0: i64, y1: i64, y2: i64, y3: i64, ky: i32, a: i64, a0: i64, a1: i64, a2: i64, a3: i64,
        b: i64, b0: i64, b1: i64, b2: i64, b3: i64, kind: i32, n0: i32, n1: i32, n2: i32, n: i32,
        op: i32, alpha: f32, limit: f32,
    ):  # fmt: skip
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < n:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            x = load(a + i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3, kind)
            g = load(b + i0 * b0 + i1 * b1 + i2 * b2 + i3 * b3, kind)
            r = x
            if op == 0:
                r = x * g if x > d.f32(0) else d.f32(0)
            elif op == 1:
                r = gelu(x) * g
            elif op == 2:
                r = silu(x) * g
            elif op == 3:
                low = least(x, limit)
                g = -least(-least(g, limit), limit)
                r = low * sigmoid(alpha * low) * (g + d.f32(1))
            elif op == 4:
                r = gelu_erf(x) * g
            elif op == 5:
                r = gelu_quick(x) * g
            else:
                g = -least(-least(g, limit), limit)
                r = silu(least(x, limit)) * g
            store(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, ky, r)

    kernel.threads = THREADS
    return kernel
