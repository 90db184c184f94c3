"""GLU: a function of one half times the other half. Knows nothing of the products that made the halves.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_glu and the seven below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.layout import FLOATS, layout_of, refuse_types
from pyggml.ops import GluOp

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types(FLOATS, node, *node.src)


def lower(builder: Builder, node: Tensor) -> None:
    a, b = (*node.src, None)[:2]
    assert a is not None
    swapped = int(b is None and node.param_i32(1) != 0)  # which half of `a` is the function's
    spec = Spec("glu", "glu", (GluOp(node.param_i32(0)).name.lower(), layout_of(node), layout_of(a), layout_of(b or a)))
    half = node.ne[0] if b is None else 0
    args = GluArgs(first=half * swapped, other=half * (1 - swapped), one_source=int(b is None))
    builder.step(spec, node, (a,) if b is None else (a, b), args=args)


def _function(name):
    """-> f(step, x, g)."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import functions as f
    from pyggml.kernels.cpu import record

    alpha, limit = record.param_f32(2), record.param_f32(3)

    @inline
    def at_most(step, x):
        return v.minimum(v.splat_f32(limit(step)), x)  # this order keeps NaNs

    @inline
    def clamp(step, x):
        return v.maximum(v.splat_f32(-limit(step)), at_most(step, x))

    if name == "reglu":

        @inline
        def apply(step, x, g):
            return v.where_less(f.zero(), x, x * g, f.zero())

    elif name == "swiglu_oai":

        @inline
        def apply(step, x, g):
            y = at_most(step, x)
            return y * f.sigmoid(v.splat_f32(alpha(step)) * y) * (clamp(step, g) + f.one())

    elif name == "swiglu_clamp":

        @inline
        def apply(step, x, g):
            return f.silu(at_most(step, x)) * clamp(step, g)

    else:
        activation = {"geglu": f.gelu, "swiglu": f.silu, "geglu_erf": f.gelu_erf, "geglu_quick": f.gelu_quick}[name]

        @inline
        def apply(step, x, g):
            return activation(x) * g

    return apply


class GluArgs(NamedTuple):
    """first, other: first element of the function's half, and of the other half. one_source: 1 = both are in src0."""

    first: int
    other: int
    one_source: int


def glu(name, kind_d, kind_a, kind_b):
    """-> kernel. Takes GluArgs."""
    from pyggml.kernels.cpu import convert, record, step_args

    f = _function(name)
    rows, ne0, piece = record.rows("dst"), record.field("dst.ne"), record.piece
    d, a, b = record.row("dst"), record.row("src0"), record.row("src1")
    store, load, load_b = convert.storer(kind_d), convert.loader(kind_a), convert.loader(kind_b)
    nbd, nba, nbb = (record.field(n) for n in ("dst.nb", "src0.nb", "src1.nb"))
    offset_x, offset_g, one_source = step_args.readers(GluArgs)

    def kernel(step, ith, nth, thread):
        n, count = ne0(step), rows(step)
        size = piece(count, n, nth)
        pieces = (n + size - 1) // size
        ox, og = offset_x(step), offset_g(step)
        both = one_source(step) != 0
        sd, sa = nbd(step), nba(step)
        sb = sa if both else nbb(step)
        for item in range(count * pieces * ith // nth, count * pieces * (ith + 1) // nth):
            row, begin = item // pieces, item % pieces * size
            end = min(n, begin + size)
            z, x = d(step, row), a(step, row)
            g = x if both else b(step, row)
            for i in range(begin, end, 16):
                k = min(16, end - i)
                store(z, i, f(step, load(x, ox + i, k, sa), load_b(g, og + i, k, sb)), k, sd)

    return kernel
