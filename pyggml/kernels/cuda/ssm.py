"""SSM_CONV: one thread a channel of a token. SSM_SCAN: a warp a row of the state, which lies in its registers, token after
token.

Source of the formulas: ggml-cpu/ops.cpp: ggml_compute_forward_ssm_conv_f32, ggml_compute_forward_ssm_scan_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Rows, entry, rows
from pyggml.kernels.cuda.layout import F32, THREADS, blocks, refuse, refuse_types, source
from pyggml.kernels.cuda.recurrence import MOST, WARPS, parts_of
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    if not node.is_contiguous:
        return "the result is not contiguous"
    if node.op == Op.SSM_CONV:
        if source(node, 1).nb[0] != 4:
            return "rows of the weights are not contiguous"
        return refuse_types([F32], node, source(node, 0), source(node, 1))
    if source(node, 0).ne[0] > MOST:
        return f"states of {source(node, 0).ne[0]} numbers, at most {MOST} are supported"
    if source(node, 1).ne[3] > 65535:
        return f"{source(node, 1).ne[3]} sequences, at most 65535 are supported"
    return refuse_types([F32], node, *(source(node, i) for i in range(6))) or refuse(source(node, 6))


def lower(builder: Builder, node: Tensor) -> None:
    if node.op == Op.SSM_SCAN:
        scan(builder, node)
        return
    x, weights = source(node, 0), source(node, 1)
    args = SsmConvArgs(
        y=node.data, x=x.data, x1=x.nb[1], x2=x.nb[2], w=weights.data, w1=weights.nb[1], width=weights.ne[0],
        channels=node.ne[0], tokens=node.ne[1], total=node.nelements,
    )  # fmt: skip
    builder.launch(Spec("ssm", "ssm_conv"), (blocks(node.nelements),), THREADS, args)


def scan(builder: Builder, node: Tensor) -> None:
    s, x, dt, a, b, c, ids = (source(node, i) for i in range(7))
    dims, heads, tokens, sequences = x.ne
    args = SsmScanArgs(
        y=node.data, s=s.data, x=rows(x), dt=dt.data, a=a.data, b=rows(b), c=rows(c), ids=ids.data, ids0=ids.nb[0],
        size=s.ne[0], dims=dims, heads=heads, tokens=tokens, decays=a.ne[0], share=heads // b.ne[1],
        slots=node.param_i32(0), limit=s.ne[3], number=builder.number + 1, status=builder.status(),
    )  # fmt: skip
    spec = Spec("ssm", "ssm_scan", (parts_of(s.ne[0]),))
    builder.launch(spec, (blocks(dims * heads, WARPS), sequences), 32 * WARPS, args)


class SsmConvArgs(NamedTuple):
    """x: its channels and sequences lie x1 and x2 apart; w: `width` weights a channel."""

    y: i64
    x: i64
    x1: i64
    x2: i64
    w: i64
    w1: i64
    width: i32
    channels: i32
    tokens: i32
    total: i32


def ssm_conv():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import places

    place = places()

    @entry(SsmConvArgs, THREADS)
    def kernel(y, x, x1, x2, w, w1, width, channels, tokens, total):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            channel, token, sequence, _ = place(i, channels, tokens, total)
            at = x + token * 4 + channel * x1 + sequence * x2
            by = w + channel * w1
            found, k = d.f32(0), d.i32(0)
            while k < width:
                found = d.fma(d.ld_f32(at + 4 * k), d.ld_f32(by + 4 * k), found)
                k = d.i32(k + 1)
            d.st_f32(y + d.i64(i) * 4, found)

    return kernel


class SsmScanArgs(NamedTuple):
    """Rows of `size` numbers of a state, `dims` a head; x, b, c: heads or groups, tokens, sequences lie nb1, nb2, nb3 apart;
    `decays`: numbers a head of a; `share`: heads that have the same b and c."""

    y: i64
    s: i64
    x: Rows
    dt: i64
    a: i64
    b: Rows
    c: Rows
    ids: i64
    ids0: i64
    size: i32
    dims: i32
    heads: i32
    tokens: i32
    decays: i32
    share: i32
    slots: i32
    limit: i32
    number: i32
    status: i64


def ssm_scan(parts):
    """Lane l has the numbers l, l + 32 ... of its row."""
    import math

    from pyggml.kernels.cuda import device as d

    @entry(SsmScanArgs, 32 * WARPS)
    def kernel(
        y, s, x, x1, x2, x3, dt, a, b, b1, b2, b3, c, c1, c2, c3, ids, ids0, size, dims, heads, tokens, decays, share,
        slots, limit, number, status,
    ):  # fmt: skip
        lane = d.i32(d.thread() & 31)
        row = d.i32(d.block_x() * WARPS + (d.thread() >> 5))
        sequence = d.i32(d.block_y())
        which = d.ld_i32(ids + sequence * ids0)
        if which < 0 or which >= limit:
            if d.thread() == 0:
                d.st_i32x4(status, number, which, which >> 31, limit)
        elif row < dims * heads:
            head = d.udiv(row, dims)
            group = d.udiv(head, share)
            state, decay = d.cuda.local.array(parts, d.f32), d.cuda.local.array(parts, d.f32)
            every = d.i64(dims) * heads
            begin = s + (which * every + row) * size * 4
            for p in range(parts):
                i = d.i32(lane + 32 * p)
                state[p], decay[p] = d.f32(0), d.f32(0)
                if i < size:
                    state[p] = d.ld_f32(begin + i * 4)
                    decay[p] = d.ld_f32(a + (d.i64(head) * decays + (i if decays > 1 else 0)) * 4)
            n_seqs = d.i64(d.blocks_y())
            kept = y + every * tokens * n_seqs * 4
            t = d.i32(0)
            while t < tokens:
                token = d.i64(sequence) * tokens + t
                step = d.ld_f32(dt + (token * heads + head) * 4)
                if step <= d.f32(20):
                    step = math.log1p(math.exp(step))
                value = d.ld_f32(x + (row - head * dims) * 4 + head * x1 + t * x2 + sequence * x3) * step
                found = d.f32(0)
                for p in range(parts):
                    i = d.i32(lane + 32 * p)
                    if i < size:
                        more = d.ld_f32(b + i * 4 + group * b1 + t * b2 + sequence * b3) * value
                        state[p] = d.fma(state[p], math.exp(step * decay[p]), more)
                        found = d.fma(state[p], d.ld_f32(c + i * 4 + group * c1 + t * c2 + sequence * c3), found)
                found = d.warp_sum(found)
                if lane == 0:
                    d.st_f32(y + (token * every + row) * 4, found)
                slot = d.i32(tokens - 1 - t)
                if slot < slots:
                    for p in range(parts):
                        i = d.i32(lane + 32 * p)
                        if i < size:
                            d.st_f32(kept + (((slot * n_seqs + sequence) * every + row) * size + i) * 4, state[p])
                t = d.i32(t + 1)

    return kernel
