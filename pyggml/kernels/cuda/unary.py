"""UNARY, SCALE and the functions that have an op of their own: one thread an element.

Which of the functions it is a kernel learns when it runs: the branch is the same for all threads, and memory is what
takes the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import FLOATS, KINDS, THREADS, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, f32, i32
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types(FLOATS, node, source(node, 0))


FUNCTIONS = (Op.SQR, Op.SQRT, Op.LOG, Op.SIN, Op.COS, Op.CLAMP, Op.LEAKY_RELU)
"""The functions that have an op of their own, by the numbers that the kernel knows them by."""


def lower(builder: Builder, node: Tensor) -> None:
    a, n = source(node, 0), node.nelements
    each = Each(y=place(node), ky=KINDS[node.type], a=place(a), ka=KINDS[a.type], n=extents(node.ne), total=n)
    if node.op == Op.SCALE:
        scaled = ScaleArgs(each, by=node.param_f32(0), bias=node.param_f32(1))
        builder.launch(Spec("unary", "scale"), (blocks(n),), THREADS, scaled)
    elif node.op in FUNCTIONS:
        named = FunctionsArgs(each, kind=FUNCTIONS.index(Op(node.op)), low=node.param_f32(0), high=node.param_f32(1))
        builder.launch(Spec("unary", "functions"), (blocks(n),), THREADS, named)
    else:
        alpha_n, alpha_p, beta, eps = (node.param_f32(i) for i in range(1, 5))
        args = UnaryArgs(each, kind=node.param_i32(0), alpha_n=alpha_n, alpha_p=alpha_p, beta=beta, eps=eps)
        builder.launch(Spec("unary", "unary"), (blocks(n),), THREADS, args)


class Each(NamedTuple):
    """Elements and their results."""

    y: Place
    ky: i32
    a: Place
    ka: i32
    n: Extents
    total: i32


class ScaleArgs(NamedTuple):
    each: Each
    by: f32
    bias: f32


def scale():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    load, store = access()
    place = places()

    @entry(ScaleArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, ky, a, a0, a1, a2, a3, ka, n0, n1, n2, total, by, bias):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            x = load(a + i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3, ka)
            store(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, ky, x * by + bias)

    return kernel


class UnaryArgs(NamedTuple):
    each: Each
    kind: i32
    alpha_n: f32
    alpha_p: f32
    beta: f32
    eps: f32


def unary():
    import math

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places
    from pyggml.kernels.cuda.functions import gates

    load, store = access()
    place = places()
    silu, gelu, gelu_quick, gelu_erf, sigmoid = gates()

    @d.inline
    def hardsigmoid(x):
        """A NaN gives 0, as fmin and fmax drop it."""
        z = d.f32((x + d.f32(3)) / d.f32(6))
        if not z > d.f32(0):
            return d.f32(0)
        if z > d.f32(1):
            return d.f32(1)
        return z

    @entry(UnaryArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, ky, a, a0, a1, a2, a3, ka, n0, n1, n2, total, kind, alpha_n, alpha_p, beta, eps):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            x = load(a + i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3, ka)
            zero, one = d.f32(0), d.f32(1)
            r = x
            if kind == 0:
                r = abs(x)
            elif kind == 1:
                r = one if x > zero else (d.f32(-1) if x < zero else zero)
            elif kind == 2:
                r = -x
            elif kind == 3:
                r = one if x > zero else zero
            elif kind == 4:
                r = math.tanh(x)
            elif kind == 5:
                r = x if x > zero else math.expm1(x)
            elif kind == 6:
                r = x if x > zero else zero
            elif kind == 7:
                r = sigmoid(x)
            elif kind == 8:
                r = gelu(x)
            elif kind == 9:
                r = gelu_quick(x)
            elif kind == 10:
                r = silu(x)
            elif kind == 11:
                r = x * hardsigmoid(x)
            elif kind == 12:
                r = hardsigmoid(x)
            elif kind == 13:
                r = math.exp(x)
            elif kind == 14:
                r = math.expm1(x)
            elif kind == 15:
                r = x if x > d.f32(20) else math.log1p(math.exp(x))
            elif kind == 16:
                r = gelu_erf(x)
            elif kind == 17:
                if x > zero:
                    r = alpha_p * x * x + beta * x
                else:
                    low = eps if x > eps else x
                    r = (math.expm1(low) - x) * alpha_n + beta * x
            elif kind == 18:
                r = d.round_down(x)
            elif kind == 19:
                r = -d.round_down(-x)
            elif kind == 20:
                whole = d.round_down(abs(x))
                # abs(x) + 0.5 would round: just below 0.5 to 1, from 2^23 on to the next even number
                r = d.sign_of(whole + d.f32(1) if abs(x) - whole >= d.f32(0.5) else whole, x)
            else:
                r = d.sign_of(d.round_down(abs(x)), x)
            store(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, ky, r)

    return kernel


class FunctionsArgs(NamedTuple):
    """low: the lower bound of CLAMP, the slope of LEAKY_RELU."""

    each: Each
    kind: i32
    low: f32
    high: f32


def functions():
    import math

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    load, store = access()
    place = places()

    @entry(FunctionsArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, ky, a, a0, a1, a2, a3, ka, n0, n1, n2, total, kind, low, high):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            x = load(a + i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3, ka)
            zero = d.f32(0)
            if kind == 0:
                r = x * x
            elif kind == 1:
                r = math.sqrt(x)
            elif kind == 2:
                r = math.log(x)
            elif kind == 3:
                r = math.sin(x)
            elif kind == 4:
                r = math.cos(x)
            elif kind == 5:  # a NaN becomes the upper bound
                r = x if x < high else high
                r = r if r > low else low
            else:
                r = (x if x > zero else zero) + low * (x if x < zero else zero)
            store(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, ky, r)

    return kernel
