"""SSM_CONV, SSM_SCAN: what Mamba does with a sequence. Knows no model.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_ssm_conv_f32, ggml_compute_forward_ssm_scan_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.indices import NumberArgs
from pyggml.kernels.cpu.layout import refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


FEW = 8
"""Tokens below which channels are lanes."""
TILE = 16 * 16 * 4
BLOCK = 16


def why_not(node: Tensor) -> str | None:
    if not node.is_contiguous:
        return "the result is not contiguous"
    weights = node.src[1]
    assert weights is not None
    if node.op == Op.SSM_CONV and weights.nb[0] != 4:
        return "rows of the weights are not contiguous"
    return refuse_types([GGMLType.F32], node, *node.src[:6])


def lower(builder: Builder, node: Tensor) -> None:
    if node.op == Op.SSM_CONV:
        room = builder.thread_scratch(TILE)
        builder.step(Spec("ssm", "ssm_conv"), node, node.src[:2], writes=(room,))
    else:
        s, x, dt, a, b, c, ids = node.src[:7]
        builder.step(Spec("ssm", "ssm_scan"), node, (s, ids, x, dt, a, b, c), args=NumberArgs())


def ssm_conv():
    """-> kernel, 16 channels at a time; the products of a window are added from its first column on. For few tokens channels
    are lanes; else tokens are, and 16 x 16 results become rows of the result in work memory, TILE bytes a thread."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    U = v.U
    load, apart = convert.loader("f32"), convert.loader("f32/")
    full = v.loader("f32", 16)
    channels, n_tokens, n_seqs = (record.field("dst.ne", i) for i in range(3))
    width, nb1 = record.field("src1.ne"), record.field("dst.nb", 1)
    row_a, row_w = record.field("src0.nb", 1), record.field("src1.nb", 1)
    d, a, w, room = record.element("dst"), record.element("src0"), record.element("src1"), record.thread_room()

    def kernel(step, ith, nth, thread):
        n, taps, stride, ra, rw = n_tokens(step), width(step), nb1(step), row_a(step), row_w(step)
        blocks, tile = (channels(step) + 15) // 16, room(step, thread)
        count = blocks * n_seqs(step)
        for item in range(count * ith // nth, count * (ith + 1) // nth):
            first, seq = item % blocks * 16, item // blocks
            some = min(16, channels(step) - first)
            x, weights, z = a(step, 0, first, seq, 0), w(step, 0, first, 0, 0), d(step, first, 0, seq, 0)
            if n < FEW:
                for t in range(n):
                    y = v.zero_f32()
                    for j in range(taps):
                        at = apart(x + U(4 * (t + j)), 0, some, ra)
                        y = v.fma(at, apart(weights + U(4 * j), 0, some, rw), y)
                    v.store_part(z + U(t * stride), y, some)
                continue
            for t in range(0, n, 16):
                part = min(16, n - t)
                for c in range(some):
                    row, mine = x + U(c * ra), weights + U(c * rw)
                    y = v.zero_f32()
                    for j in range(taps):
                        y = v.fma(load(row, t + j, part, 4), v.broadcast_f32(mine + U(4 * j)), y)
                    v.store_strided(tile + U(4 * c), y, 64, 16)
                for i in range(part):
                    v.store_part(z + U((t + i) * stride), full(tile + U(64 * i)), some)

    return kernel


def ssm_scan():
    """-> kernel. Sources: states, numbers of the states to begin with, x, dt, decay, B, C. A thread takes whole heads, BLOCK
    rows of a head's state at a time through all tokens, so that they stay in the nearest cache. Takes NumberArgs."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, indices, record, step_args
    from pyggml.kernels.cpu import functions as f

    U = v.U
    bad, choose = indices.numbers_are_bad(step_args.readers(NumberArgs).wide), indices.chosen()
    limit = record.field("src0.ne", 3)
    load, store = convert.loader("f32"), convert.storer("f32")
    d_state, head_dim, n_head = (record.field("src0.ne", i) for i in range(3))
    n_tokens, n_seqs, n_group = record.field("src2.ne", 2), record.field("src2.ne", 3), record.field("src5.ne", 1)
    per_element, slots = record.field("src4.ne"), record.param_i32(0)
    state_at, number = record.element("src0"), record.element("src1")
    x_at, dt_at, a_at, b_at, c_at = (record.element(f"src{i}") for i in range(2, 7))
    data, aborted = record.field("dst.data"), record.aborted()
    full = v.loader("f32", 16)

    @inline
    def four_rows(new, old, offset, n, dt, decay, x, b, c, y):
        """Rows of whole vectors, from `offset` bytes on, with one decay: B and C are read once for all four."""
        x0, x1 = dt * v.broadcast_f32(x), dt * v.broadcast_f32(x + U(4))
        x2, x3 = dt * v.broadcast_f32(x + U(8)), dt * v.broadcast_f32(x + U(12))
        t0, t1, t2, t3 = v.zero_f32(), v.zero_f32(), v.zero_f32(), v.zero_f32()
        row = 4 * n
        for i in range(0, n, 16):
            at = offset + 4 * i
            bi, ci = full(b + U(4 * i)), full(c + U(4 * i))
            s0 = v.fma(bi, x0, full(old + U(at)) * decay)
            s1 = v.fma(bi, x1, full(old + U(at + row)) * decay)
            s2 = v.fma(bi, x2, full(old + U(at + 2 * row)) * decay)
            s3 = v.fma(bi, x3, full(old + U(at + 3 * row)) * decay)
            v.store(new + U(at), s0)
            v.store(new + U(at + row), s1)
            v.store(new + U(at + 2 * row), s2)
            v.store(new + U(at + 3 * row), s3)
            t0, t1, t2, t3 = v.fma(s0, ci, t0), v.fma(s1, ci, t1), v.fma(s2, ci, t2), v.fma(s3, ci, t3)
        v.put_f32(y, v.hsum(t0))
        v.put_f32(y + U(4), v.hsum(t1))
        v.put_f32(y + U(8), v.hsum(t2))
        v.put_f32(y + U(12), v.hsum(t3))

    def kernel(step, ith, nth, thread):
        if bad(step, limit(step), ith):
            return
        n, dims, heads, tokens, seqs = d_state(step), head_dim(step), n_head(step), n_tokens(step), n_seqs(step)
        share, kept = heads // n_group(step), np.int64(slots(step))
        results = data(step) + U(4 * dims * heads * tokens * seqs)  # where the states begin
        size = 4 * n * dims  # bytes of a head's state
        for item in range(heads * seqs * ith // nth, heads * seqs * (ith + 1) // nth):
            head, seq = item % heads, item // heads
            which = choose(step, number(step, seq, 0, 0, 0), False, limit(step))
            if which < 0:
                return
            for low in range(0, dims, BLOCK):
                high = min(dims, low + BLOCK)
                old = state_at(step, 0, 0, head, which)
                new = results + U((seq * heads + head) * size)
                for t in range(tokens):
                    if aborted(step):
                        return
                    dt = f.softplus(v.broadcast_f32(dt_at(step, head, t, seq, 0)))
                    decays = a_at(step, 0, head, 0, 0)
                    whole = f.exp(dt * v.broadcast_f32(decays))
                    x = x_at(step, 0, head, t, seq)
                    b, c = b_at(step, 0, head // share, t, seq), c_at(step, 0, head // share, t, seq)
                    y = data(step) + U(4 * dims * (heads * (seq * tokens + t) + head))
                    first = low
                    if per_element(step) == 1 and n % 16 == 0:
                        first = high - (high - low) % 4
                        for i1 in range(low, first, 4):
                            four_rows(new, old, 4 * i1 * n, n, dt, whole, x + U(4 * i1), b, c, y + U(4 * i1))
                    for i1 in range(first, high):
                        step_x = dt * v.broadcast_f32(x + U(4 * i1))
                        total = v.zero_f32()
                        for i in range(0, n, 16):
                            k = min(16, n - i)
                            decay = whole
                            if per_element(step) != 1:
                                decay = f.exp(dt * load(decays, i, k, 4))
                            state = v.fma(load(b, i, k, 4), step_x, load(old, i1 * n + i, k, 4) * decay)
                            total = v.fma(state, load(c, i, k, 4), total)
                            store(new, i1 * n + i, state, k, 4)
                        v.put_f32(y + U(4 * i1), v.hsum(total))
                    slot = tokens - 1 - t
                    if 0 < slot < kept:
                        rows = new + U(4 * n * low)
                        v.copy_bytes(rows + U(slot * seqs * heads * size), rows, 4 * n * (high - low))
                    old = new

    return kernel
