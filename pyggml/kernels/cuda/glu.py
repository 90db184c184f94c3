"""GLU: a function of one half times the other half."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import FLOATS, KINDS, THREADS, blocks, option, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, f32, i32

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    a, b = source(node, 0), option(node, 1)
    return refuse_types(FLOATS, node, a, *(() if b is None else (b,)))


def lower(builder: Builder, node: Tensor) -> None:
    a, b = source(node, 0), option(node, 1)
    n = node.nelements
    x, gate = place(a), place(b)
    if b is None:
        x, gate = place(a), place(a)._replace(at=a.data + a.nb[0] * node.ne[0])
        if node.param_i32(1):
            x, gate = gate, x
    args = GluArgs(
        y=place(node), ky=KINDS[node.type], a=x, b=gate, kind=KINDS[a.type], n=extents(node.ne), total=n,
        op=node.param_i32(0), alpha=node.param_f32(2), limit=node.param_f32(3),
    )  # fmt: skip
    builder.launch(Spec("glu", "glu"), (blocks(n),), THREADS, args)


class GluArgs(NamedTuple):
    y: Place
    ky: i32
    a: Place
    b: Place
    kind: i32
    n: Extents
    total: i32
    op: i32
    alpha: f32
    limit: f32


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

    @entry(GluArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, ky, a, a0, a1, a2, a3, b, b0, b1, b2, b3, kind, n0, n1, n2, total, op, alpha, limit,
    ):  # fmt: skip
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
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

    return kernel
