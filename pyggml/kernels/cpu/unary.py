"""SCALE, UNARY, SQR SQRT LOG SIN COS, CLAMP, LEAKY_RELU: a function of each element.

Owns what is computed of one tensor; the formulas are in functions.py.
Sources: ggml-cpu/unary-ops.cpp; ops.cpp: ggml_compute_forward_scale, _clamp, _leaky_relu.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.layout import FLOATS, layout_of, refuse_types
from pyggml.ops import Op, UnaryOp

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    if layout_of(node).endswith("/"):
        return "elements of a row of the result are not contiguous"  # as in ggml; the source's rows are dense by rule
    return refuse_types(FLOATS, node, node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    (a,) = node.src[:1]
    assert a is not None
    name = (UnaryOp(node.param_i32(0)) if node.op == Op.UNARY else Op(node.op)).name.lower()
    builder.step(Spec("unary", "unary", (name, layout_of(node), layout_of(a))), node, (a,))


def _scale():
    """x * op_params[0] + op_params[1]."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    factor, bias = record.param_f32(0), record.param_f32(1)

    @inline
    def apply(step, x):
        return x * v.splat_f32(factor(step)) + v.splat_f32(bias(step))

    return apply


def _clamp():
    """At least op_params[0] and at most op_params[1], which a NaN becomes."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    low, high = record.param_f32(0), record.param_f32(1)

    @inline
    def apply(step, x):
        return v.maximum(v.minimum(x, v.splat_f32(high(step))), v.splat_f32(low(step)))

    return apply


def _leaky_relu():
    """Negative elements times op_params[0]. The other part is added as 0 times it, as in ggml: NaN gives 0."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import functions as f
    from pyggml.kernels.cpu import record

    slope = record.param_f32(0)

    @inline
    def apply(step, x):
        return f.relu(x) + v.splat_f32(slope(step)) * v.where_less(x, f.zero(), x, f.zero())

    return apply


def _xielu():
    """alpha_p x^2 + beta x above 0, alpha_n (e^min(x, eps) - 1 - x) + beta x elsewhere; op_params[1] to [4]."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import functions as f
    from pyggml.kernels.cpu import record

    alpha_n, alpha_p, beta, eps = (record.param_f32(i) for i in range(1, 5))

    @inline
    def apply(step, x):
        linear = v.splat_f32(beta(step)) * x
        above = v.splat_f32(alpha_p(step)) * x * x + linear
        below = (f.expm1(v.minimum(x, v.splat_f32(eps(step)))) - x) * v.splat_f32(alpha_n(step)) + linear
        return v.where_less(f.zero(), x, above, below)

    return apply


def _plain(name):
    from pyggml import simd as v
    from pyggml.kernels.cpu import functions

    renamed = {"abs": v.absolute, "neg": v.negative, "round": functions.round_half_away, "sqrt": v.sqrt}
    f = renamed.get(name) or getattr(functions, name)

    @inline
    def apply(step, x):
        return f(x)

    return apply


def unary(name, kind_d, kind_a):
    """-> kernel: `name` of each element."""
    from pyggml.kernels.cpu import convert, record

    f = {"scale": _scale, "xielu": _xielu, "clamp": _clamp, "leaky_relu": _leaky_relu}.get(name, lambda: _plain(name))()
    rows, ne0, piece = record.rows("dst"), record.field("dst.ne"), record.piece
    d, a = record.row("dst"), record.row("src0")
    store, load = convert.storer(kind_d), convert.loader(kind_a)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    def kernel(step, ith, nth, thread):
        n, count = ne0(step), rows(step)
        size = piece(count, n, nth)
        pieces = (n + size - 1) // size
        sd, sa = nbd(step), nba(step)
        for item in range(count * pieces * ith // nth, count * pieces * (ith + 1) // nth):
            row, begin = item // pieces, item % pieces * size
            end = min(n, begin + size)
            z, x = d(step, row), a(step, row)
            for i in range(begin, end, 16):
                k = min(16, end - i)
                store(z, i, f(step, load(x, i, k, sa)), k, sd)

    return kernel
