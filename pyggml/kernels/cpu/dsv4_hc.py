"""DSV4_HC_COMB, DSV4_HC_PRE, DSV4_HC_POST: several streams of embeddings a token, mixed. Knows no model.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_dsv4_hc_comb_f32, ggml_compute_forward_dsv4_hc_pre_f32,
ggml_compute_forward_dsv4_hc_post_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.layout import layout_of, refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

CHUNK = 512
"""Elements of all streams that stay in the first cache while each result is made of them."""


def why_not(node: Tensor) -> str | None:
    if node.op == Op.DSV4_HC_COMB and not node.is_contiguous:
        return "the result is not contiguous"
    return refuse_types([GGMLType.F32], node)


def lower(builder: Builder, node: Tensor) -> None:
    a, b, third = node.src[:3] if len(node.src) > 2 else (*node.src[:2], None)
    assert a is not None and b is not None
    if node.op == Op.DSV4_HC_COMB:
        assert third is not None
        builder.step(Spec("dsv4_hc", "comb", (layout_of(a), layout_of(third))), node, node.src[:3])
    elif node.op == Op.DSV4_HC_PRE:
        name = "pre_gated" if node.param_i32(1) else "pre"
        kinds = (layout_of(node), layout_of(a), layout_of(b)) if node.param_i32(1) else (layout_of(node), layout_of(a))
        builder.step(Spec("dsv4_hc", name, kinds), node, (a, b))
    else:
        mixes = node.src[3] if len(node.src) > 3 else None
        name = "post_as_they_are" if mixes is None else "post"
        spec = Spec("dsv4_hc", name, (layout_of(node), layout_of(a), layout_of(b)))
        builder.step(spec, node, (a, b, third) if mixes is None else (a, b, third, mixes))


def comb(kind_mixes, kind_base):
    """-> kernel. The matrix of a token is one register: lane 4 i + j is what source i adds to result j. Four tokens at a time, as
    each step waits for the one before."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record
    from pyggml.kernels.cpu import functions as f

    U = v.U
    load, load_base = convert.loader(kind_mixes), convert.loader(kind_base)
    swap1, swap2, swap4, swap8 = (v.shuffler([i ^ n for i in range(16)]) for n in (1, 2, 4, 8))
    mixes, base, scale_at = record.element("src0"), record.element("src2"), record.element("src1")
    nbm, nbb, n_tokens = record.field("src0.nb"), record.field("src2.nb"), record.field("src0.ne", 1)
    eps_of, rounds_of = record.param_f32(0), record.param_i32(1)
    data, aborted = record.field("dst.data"), record.aborted()

    @inline
    def over_row(x):
        y = x + swap1(x)
        return y + swap2(y)

    @inline
    def columns_normed(x, eps):
        y = x + swap4(x)
        return x / (y + swap8(y) + eps)

    @inline
    def start(x, eps):
        top = v.maximum(x, swap1(x))
        x = f.exp(x - v.maximum(top, swap2(top)))
        return columns_normed(x / over_row(x) + eps, eps)

    @inline
    def again(x, eps):
        return columns_normed(x / (over_row(x) + eps), eps)

    def kernel(step, ith, nth, thread):
        eps, scale = v.splat_f32(eps_of(step)), v.broadcast_f32(scale_at(step, 2, 0, 0, 0))
        tokens, rounds, added = n_tokens(step), rounds_of(step), load_base(base(step, 8, 0, 0, 0), 0, 16, nbb(step))
        end, stride = tokens * (ith + 1) // nth, nbm(step)
        for t in range(tokens * ith // nth, end, 4):
            t1, t2, t3 = min(t + 1, end - 1), min(t + 2, end - 1), min(t + 3, end - 1)
            x0 = start(v.fma(load(mixes(step, 8, t, 0, 0), 0, 16, stride), scale, added), eps)
            x1 = start(v.fma(load(mixes(step, 8, t1, 0, 0), 0, 16, stride), scale, added), eps)
            x2 = start(v.fma(load(mixes(step, 8, t2, 0, 0), 0, 16, stride), scale, added), eps)
            x3 = start(v.fma(load(mixes(step, 8, t3, 0, 0), 0, 16, stride), scale, added), eps)
            for i in range(1, rounds):
                if i & 1023 == 0 and aborted(step):
                    return
                x0, x1, x2, x3 = again(x0, eps), again(x1, eps), again(x2, eps), again(x3, eps)
            v.store(data(step) + U(64 * t), x0)
            v.store(data(step) + U(64 * t1), x1)
            v.store(data(step) + U(64 * t2), x2)
            v.store(data(step) + U(64 * t3), x3)

    return kernel


def pre(kind_d, kind_x):
    """-> kernel: one weight a stream."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    weight_at = record.element("src1")

    @inline
    def weight(step, stream, token, i, n):
        return v.broadcast_f32(weight_at(step, stream, token, 0, 0))

    return _pre(kind_d, kind_x, weight)


def pre_gated(kind_d, kind_x, kind_g):
    """-> kernel: one gate an element."""
    from pyggml.kernels.cpu import convert, record
    from pyggml.kernels.cpu import functions as f

    load, gate_at, stride = convert.loader(kind_g), record.element("src1"), record.field("src1.nb")

    @inline
    def weight(step, stream, token, i, n):
        return f.sigmoid(load(gate_at(step, 0, stream, token, 0), i, n, stride(step)))

    return _pre(kind_d, kind_x, weight)


def _pre(kind_d, kind_x, weight):
    """-> kernel; weight(step, stream, token, i, n): of elements i to i + n - 1 of a stream."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    U, load, store = v.U, convert.loader(kind_x), convert.storer(kind_d)
    streams_of, apart, nbx = record.field("src0.ne", 1), record.field("src0.nb", 1), record.field("src0.nb")
    x_at, d_at = record.element("src0"), record.element("dst")
    n_embd, n_tokens, nbd = record.field("dst.ne"), record.field("dst.ne", 1), record.field("dst.nb")
    piece, scale_of = record.piece, record.param_f32(0)

    def kernel(step, ith, nth, thread):
        n, tokens, streams, stride = n_embd(step), n_tokens(step), streams_of(step), nbx(step)
        length, scale = piece(tokens, n, nth), v.splat_f32(scale_of(step))
        each = (n + length - 1) // length
        for item in range(tokens * each * ith // nth, tokens * each * (ith + 1) // nth):
            token, begin = item // each, item % each * length
            x, to = x_at(step, 0, 0, token, 0), d_at(step, 0, token, 0, 0)
            for i in range(begin, min(n, begin + length), 16):
                part, total = min(16, n - i), v.zero_f32()
                for s in range(streams):
                    w = weight(step, s, token, i, part)
                    total = v.fma(load(x + U(s * apart(step)), i, part, stride), w, total)
                store(to, i, total * scale, part, nbd(step))

    return kernel


def post(kind_d, kind_x, kind_r):
    """-> kernel: streams are mixed."""
    return _post(kind_d, kind_x, kind_r, True)


def post_as_they_are(kind_d, kind_x, kind_r):
    """-> kernel: each result keeps its own stream."""
    return _post(kind_d, kind_x, kind_r, False)


def _post(kind_d, kind_x, kind_r, mixed):
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    U, chunk = v.U, CHUNK
    load, load_stream, store = convert.loader(kind_x), convert.loader(kind_r), convert.storer(kind_d)
    x_at, r_at, p_at, c_at, d_at = (record.element(f) for f in ("src0", "src1", "src2", "src3", "dst"))
    n_embd, streams_of, n_tokens = (record.field("dst.ne", i) for i in range(3))
    nbx, nbr, nbd, apart = (
        record.field("src0.nb"), record.field("src1.nb"), record.field("dst.nb"), record.field("src1.nb", 1),
    )  # fmt: skip

    def kernel(step, ith, nth, thread):
        n, streams, tokens = n_embd(step), streams_of(step), n_tokens(step)
        each = (n + chunk - 1) // chunk
        for item in range(tokens * each * ith // nth, tokens * each * (ith + 1) // nth):
            token, begin = item // each, item % each * chunk
            x, first = x_at(step, 0, token, 0, 0), r_at(step, 0, 0, token, 0)
            for result in range(streams):
                to, weight = d_at(step, 0, result, token, 0), v.broadcast_f32(p_at(step, result, token, 0, 0))
                for i in range(begin, min(n, begin + chunk), 16):
                    part = min(16, n - i)
                    total = load(x, i, part, nbx(step)) * weight
                    if mixed:
                        for s in range(streams):
                            w = v.broadcast_f32(c_at(step, result, s, token, 0))
                            total = v.fma(load_stream(first + U(s * apart(step)), i, part, nbr(step)), w, total)
                    else:
                        own = load_stream(first + U(result * apart(step)), i, part, nbr(step))
                        total = total + own
                    store(to, i, total, part, nbd(step))

    return kernel
