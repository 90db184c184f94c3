"""DSV4_HC_COMB: half a warp a token, a lane a number of its matrix. DSV4_HC_PRE, DSV4_HC_POST: a thread an element of a token,
of all streams. Knows no model.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_dsv4_hc_comb_f32, ggml_compute_forward_dsv4_hc_pre_f32,
ggml_compute_forward_dsv4_hc_post_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Place, entry, place
from pyggml.kernels.cuda.layout import F32, blocks, option, refuse, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, f32, i32, i64
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

THREADS = 128
MATRIX = 16
"""Numbers of a token's matrix in DSV4_HC_COMB."""
BLOCKS = 64
"""That share the elements of a token at most."""
TOGETHER = 4
"""Results of DSV4_HC_POST for which a stream is read once."""


def why_not(node: Tensor) -> str | None:
    if node.op == Op.DSV4_HC_COMB and not node.is_contiguous:
        return "the result is not contiguous"
    return refuse_types([F32], node, *(t for t in node.src[:3] if t is not None)) or refuse(option(node, 3))


def lower(builder: Builder, node: Tensor) -> None:
    a, b = source(node, 0), source(node, 1)
    if node.op == Op.DSV4_HC_COMB:
        base = source(node, 2)
        comb = CombArgs(
            y=node.data, mixes=a.data + 8 * a.nb[0], mixes0=a.nb[0], mixes1=a.nb[1], scale=b.data + 2 * b.nb[0],
            base=base.data + 8 * base.nb[0], base0=base.nb[0], tokens=a.ne[1], rounds=node.param_i32(1), eps=node.param_f32(0),
        )  # fmt: skip
        builder.launch(Spec("dsv4_hc", "comb"), (blocks(a.ne[1], THREADS // MATRIX),), THREADS, comb)
        return
    n_embd, streams, tokens, _ = a.ne if node.op == Op.DSV4_HC_PRE else b.ne
    grid = (tokens, min(blocks(n_embd, THREADS), BLOCKS))
    if node.op == Op.DSV4_HC_PRE:
        gated = node.param_i32(1)
        w0, w1, w2 = b.nb[:3] if gated else (0, *b.nb[:2])
        pre = PreArgs(
            y=node.data, y0=node.nb[0], y1=node.nb[1], x=a.data, x0=a.nb[0], x1=a.nb[1], x2=a.nb[2], w=b.data, w0=w0, w1=w1,
            w2=w2, n=n_embd, streams=streams, gated=gated, by=node.param_f32(0),
        )  # fmt: skip
        builder.launch(Spec("dsv4_hc", "pre"), grid, THREADS, pre)
        return
    weights, mixes = source(node, 2), option(node, 3)
    post = PostArgs(
        y=place(node), x=a.data, x0=a.nb[0], x1=a.nb[1], r=b.data, r0=b.nb[0], r1=b.nb[1], r2=b.nb[2], w=weights.data,
        w0=weights.nb[0], w1=weights.nb[1], c=place(mixes), n=n_embd, streams=streams,
    )  # fmt: skip
    builder.launch(Spec("dsv4_hc", "post"), grid, THREADS, post)


class CombArgs(NamedTuple):
    """`mixes`, `scale`, `base`: where the numbers begin that count."""

    y: i64
    mixes: i64
    mixes0: i64
    mixes1: i64
    scale: i64
    base: i64
    base0: i64
    tokens: i32
    rounds: i32
    eps: f32


def comb():
    """Lane 4 i + j of half a warp has what source i adds to result j."""
    import math

    from pyggml.kernels.cuda import device as d

    @d.inline
    def over(x, bit):
        """The sum over lanes that differ in this bit and the next."""
        x = x + d.shuffle_xor_f32(x, bit)
        return x + d.shuffle_xor_f32(x, 2 * bit)

    @entry(CombArgs, THREADS)
    def kernel(y, mixes, mixes0, mixes1, scale, base, base0, tokens, rounds, eps):
        i = d.i32(d.thread() & (MATRIX - 1))
        token = d.i32(d.block_x() * (THREADS // MATRIX) + d.udiv(d.thread(), MATRIX))
        x = d.f32(0)
        if token < tokens:  # lanes without a token take part in the exchange
            x = d.fma(d.ld_f32(mixes + token * mixes1 + i * mixes0), d.ld_f32(scale), d.ld_f32(base + i * base0))
        top = d.fmaximum(x, d.shuffle_xor_f32(x, 1))
        top = d.fmaximum(top, d.shuffle_xor_f32(top, 2))
        x = math.exp(x - top)
        x = x / over(x, 1) + eps
        x = x / (over(x, 4) + eps)
        done = d.i32(1)
        while done < rounds:
            x = x / (over(x, 1) + eps)
            x = x / (over(x, 4) + eps)
            done = d.i32(done + 1)
        if token < tokens:
            d.st_f32(y + (token * MATRIX + i) * 4, x)

    return kernel


class PreArgs(NamedTuple):
    """Elements, streams, tokens of x lie x0, x1, x2 bytes apart; w likewise: w0 is 0 where a stream has one weight. `gated`: what
    counts is the sigmoid of w."""

    y: i64
    y0: i64
    y1: i64
    x: i64
    x0: i64
    x1: i64
    x2: i64
    w: i64
    w0: i64
    w1: i64
    w2: i64
    n: i32
    streams: i32
    gated: i32
    by: f32


def pre():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.functions import gates

    sigmoid = gates()[-1]

    @entry(PreArgs, THREADS)
    def kernel(y, y0, y1, x, x0, x1, x2, w, w0, w1, w2, n, streams, gated, by):
        token = d.block_x()
        i = d.i32(d.block_y() * THREADS + d.thread())
        while i < n:
            at, weights = x + token * x2 + i * x0, w + token * w2 + i * w0
            total = d.f32(0)
            s = d.i32(0)
            while s < streams:
                weight = d.ld_f32(weights + s * w1)
                if gated != 0:
                    weight = sigmoid(weight)
                total = d.fma(d.ld_f32(at + s * x1), weight, total)
                s = d.i32(s + 1)
            d.st_f32(y + token * y1 + i * y0, total * by)
            i = d.i32(i + d.blocks_y() * THREADS)

    return kernel


class PostArgs(NamedTuple):
    """y: elements, results, tokens. x: elements, tokens. r, the streams: elements, streams, tokens. w: results, tokens. c: results,
    streams, tokens; where it is absent, each result keeps its own stream."""

    y: Place
    x: i64
    x0: i64
    x1: i64
    r: i64
    r0: i64
    r1: i64
    r2: i64
    w: i64
    w0: i64
    w1: i64
    c: Place
    n: i32
    streams: i32


def post():
    from pyggml.kernels.cuda import device as d

    @entry(PostArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, x, x0, x1, r, r0, r1, r2, w, w0, w1, c, c0, c1, c2, c3, n, streams,
    ):  # fmt: skip
        token = d.block_x()
        total = d.cuda.local.array(TOGETHER, d.f32)
        weights, mixes = w + token * w1, c + token * c2
        i = d.i32(d.block_y() * THREADS + d.thread())
        while i < n:
            added = d.ld_f32(x + token * x1 + i * x0)
            own, to = r + token * r2 + i * r0, y + token * y2 + i * y0
            first = d.i32(0)
            while first < streams:
                for k in range(TOGETHER):
                    if first + k < streams:
                        total[k] = added * d.ld_f32(weights + (first + k) * w0)
                        if c == 0:
                            total[k] = total[k] + d.ld_f32(own + (first + k) * r1)
                if c != 0:
                    s = d.i32(0)
                    while s < streams:
                        value = d.ld_f32(own + s * r1)
                        for k in range(TOGETHER):
                            if first + k < streams:
                                total[k] = d.fma(value, d.ld_f32(mixes + (first + k) * c0 + s * c1), total[k])
                        s = d.i32(s + 1)
                for k in range(TOGETHER):
                    if first + k < streams:
                        d.st_f32(to + (first + k) * y1, total[k])
                first = d.i32(first + TOGETHER)
            i = d.i32(i + d.blocks_y() * THREADS)

    return kernel
