"""LIGHTNING_INDEXER: the products of 32 keys with four heads' queries at a time, in registers.

A tile of keys is unpacked into work memory, so that lanes are keys; then all heads of up to TOKENS tokens read it. A score is
summed up over elements and over heads in their order. Source: ggml-cpu/ops.cpp: ggml_compute_forward_lightning_indexer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.formats import DEQUANTISED_FIRST, DEQUANTIZABLE
from pyggml.kernels.cpu.layout import layout_of, refuse_types

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

TOKENS = 32
"""That share an unpacked tile of keys."""


def why_not(node: Tensor) -> str | None:
    return refuse_types([GGMLType.F32], node) or refuse_types(
        [t for t in DEQUANTIZABLE if t not in DEQUANTISED_FIRST], node.src[1]
    )


def lower(builder: Builder, node: Tensor) -> None:
    k, mask = node.src[1], node.src[3]
    assert k is not None and mask is not None
    room = builder.thread_scratch(4 * 3 * 16 * (-(-k.ne[0] // 16) * 16))
    spec = Spec("lightning_indexer", "scores", (layout_of(node), layout_of(k), layout_of(mask)))
    builder.step(spec, node, node.src[:4], writes=(room,))


def scores(kind_d, kind_k, kind_m):
    """-> kernel. Work memory of a thread, with d the size of keys rounded up to 16: rows [16][d] | keys 2 x [d][16], all f32."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    U, tokens_each = v.U, TOKENS
    load, load_mask, store = convert.loader(kind_k), convert.loader(kind_m), convert.storer(kind_d)
    turn = v.transposer(v.load_f32)
    size_of, heads_of, tokens_of, streams_of = (record.field("src0.ne", i) for i in range(4))
    cells_of, masks_of = record.field("src1.ne", 2), record.field("src3.ne", 3)
    q_at, k_at, w_at, m_at, d_at = (record.element(f) for f in ("src0", "src1", "src2", "src3", "dst"))
    nbq, nbq1, nbk, nbm, nbd = (
        record.field("src0.nb"), record.field("src0.nb", 1), record.field("src1.nb"), record.field("src3.nb"),
        record.field("dst.nb"),
    )  # fmt: skip
    room, aborted = record.thread_room(), record.aborted()

    @v.device
    def unpack(step, first, stream, rows, keys):
        """Keys of 32 cells. Those behind the last are whatever lies there, and no result."""
        n, wide = size_of(step), (size_of(step) + 15) // 16 * 16
        for half in range(2):
            start = first + 16 * half
            count = min(16, cells_of(step) - start)
            if count > 0:
                for j in range(count):
                    row, to = k_at(step, 0, 0, start + j, stream), rows + U(4 * wide * j)
                    for i in range(0, n, 16):
                        v.store(to + U(4 * i), load(row, i, min(16, n - i), nbk(step)))
                for i in range(0, wide, 16):
                    turn(keys + U(64 * (half * wide + i)), rows + U(4 * i), U(4 * wide), count - 1)

    @v.device
    def score(step, token, stream, keys):
        """-> the scores of 32 keys, in two registers."""
        n, apart, heads = size_of(step), nbq(step), heads_of(step)
        behind = U(64 * ((n + 15) // 16 * 16))
        x, y, zero = v.zero_f32(), v.zero_f32(), v.zero_f32()
        whole = heads // 4 * 4
        for h in range(0, whole, 4):
            q0 = q_at(step, 0, h, token, stream)
            q1 = q0 + U(nbq1(step))
            q2 = q1 + U(nbq1(step))
            q3 = q2 + U(nbq1(step))
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
            for i in range(n):
                at, key = U(i * apart), keys + U(64 * i)
                low, high = v.load_f32(key), v.load_f32(key + behind)
                s0, s1 = v.broadcast_f32(q0 + at), v.broadcast_f32(q1 + at)
                s2, s3 = v.broadcast_f32(q2 + at), v.broadcast_f32(q3 + at)
                a0, b0 = v.fma(low, s0, a0), v.fma(high, s0, b0)
                a1, b1 = v.fma(low, s1, a1), v.fma(high, s1, b1)
                a2, b2 = v.fma(low, s2, a2), v.fma(high, s2, b2)
                a3, b3 = v.fma(low, s3, a3), v.fma(high, s3, b3)
            w0, w1 = (
                v.broadcast_f32(w_at(step, h, token, 0, stream)),
                v.broadcast_f32(w_at(step, h + 1, token, 0, stream)),
            )
            w2, w3 = (
                v.broadcast_f32(w_at(step, h + 2, token, 0, stream)),
                v.broadcast_f32(w_at(step, h + 3, token, 0, stream)),
            )
            x, y = v.fma(v.maximum(a0, zero), w0, x), v.fma(v.maximum(b0, zero), w0, y)
            x, y = v.fma(v.maximum(a1, zero), w1, x), v.fma(v.maximum(b1, zero), w1, y)
            x, y = v.fma(v.maximum(a2, zero), w2, x), v.fma(v.maximum(b2, zero), w2, y)
            x, y = v.fma(v.maximum(a3, zero), w3, x), v.fma(v.maximum(b3, zero), w3, y)
        for h in range(whole, heads):
            q = q_at(step, 0, h, token, stream)
            a = b = zero
            for i in range(n):
                key, s = keys + U(64 * i), v.broadcast_f32(q + U(i * apart))
                a, b = v.fma(v.load_f32(key), s, a), v.fma(v.load_f32(key + behind), s, b)
            w = v.broadcast_f32(w_at(step, h, token, 0, stream))
            x, y = v.fma(v.maximum(a, zero), w, x), v.fma(v.maximum(b, zero), w, y)
        return x, y

    def kernel(step, ith, nth, thread):
        cells, tokens = cells_of(step), tokens_of(step)
        tiles, groups = (cells + 31) // 32, (tokens + tokens_each - 1) // tokens_each
        rows = room(step, thread)
        keys = rows + U(64 * ((size_of(step) + 15) // 16 * 16))
        count = tiles * groups * streams_of(step)
        for item in range(count * ith // nth, count * (ith + 1) // nth):
            first, group, stream = item % tiles * 32, item // tiles % groups, item // tiles // groups
            unpack(step, first, stream, rows, keys)
            for token in range(group * tokens_each, min(tokens, (group + 1) * tokens_each)):
                if aborted(step):
                    return
                x, y = score(step, token, stream, keys)
                mask, to = m_at(step, 0, token, 0, stream % masks_of(step)), d_at(step, 0, token, 0, stream)
                n = min(16, cells - first)
                store(to, first, x + load_mask(mask, first, n, nbm(step)), n, nbd(step))
                n = min(16, cells - first - 16)
                if n > 0:
                    store(to, first + 16, y + load_mask(mask, first + 16, n, nbm(step)), n, nbd(step))

    return kernel
