"""GATED_DELTA_NET: linear attention that overwrites what it finds under a key. Knows no model.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_gated_delta_net_one_chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import refuse_types

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    if not node.is_contiguous:
        return "the result is not contiguous"
    return refuse_types([GGMLType.F32], node)


def lower(builder: Builder, node: Tensor) -> None:
    v = node.src[2]
    assert v is not None
    room = builder.thread_scratch(4 * v.ne[0])
    builder.step(Spec("gated_delta_net", "gated_delta_net"), node, node.src[:6], writes=(room,))


def gated_delta_net():
    """-> kernel. A thread takes whole heads; the state is worked on in place, where the newest one is wanted."""
    import numpy as np

    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record
    from pyggml.kernels.cpu import functions as f

    U = v.U
    load, store = convert.loader("f32"), convert.storer("f32")
    head_size, n_head, n_tokens, n_seqs = (record.field("src2.ne", i) for i in range(4))
    heads_q, heads_k = record.field("src0.ne", 1), record.field("src1.ne", 1)
    seqs_q, seqs_k = record.field("src0.ne", 3), record.field("src1.ne", 3)
    gates, slots = record.field("src3.ne"), record.param_i32(0)
    q_at, k_at, v_at, g_at, beta_at, state_at = (record.element(f"src{i}") for i in range(6))
    data, work, room = record.field("dst.data"), record.field("scratch"), record.field("thread_bytes")
    aborted = record.aborted()

    def kernel(step, ith, nth, thread):
        n, heads, tokens, seqs = head_size(step), n_head(step), n_tokens(step), n_seqs(step)
        kept, size = np.int64(slots(step)), 4 * n * n
        results = data(step) + U(4 * n * heads * tokens * seqs)  # where the states begin
        decays = work(step) + U(thread * room(step))
        scale = v.lane(v.splat_f32(np.float32(1)) / v.sqrt(v.splat_f32(np.float32(n))), 0)
        for item in range(heads * seqs * ith // nth, heads * seqs * (ith + 1) // nth):
            head, seq = item % heads, item // heads
            state = results + U(item * size)
            if tokens > 0 or kept == 1:
                v.copy_bytes(state, state_at(step, 0, 0, head, seq), size)
            for t in range(tokens):
                if aborted(step):
                    return
                q = q_at(step, 0, head % heads_q(step), t, seq // (seqs // seqs_q(step)))
                k = k_at(step, 0, head % heads_k(step), t, seq // (seqs // seqs_k(step)))
                values, gate = v_at(step, 0, head, t, seq), g_at(step, 0, head, t, seq)
                beta = v.f32_at(beta_at(step, 0, head, t, seq))
                for i in range(0, n, 16):
                    part = min(16, n - i)
                    if gates(step) == n:
                        store(decays, i, f.exp(load(gate, i, part, 4)), part, 4)
                    else:
                        store(decays, i, f.exp(v.broadcast_f32(gate)), part, 4)
                y = data(step) + U(4 * n * (heads * (seq * tokens + t) + head))
                for j in range(n):
                    row = state + U(4 * n * j)
                    found = v.zero_f32()
                    for i in range(0, n, 16):
                        part = min(16, n - i)
                        s = load(row, i, part, 4) * load(decays, i, part, 4)
                        found = v.fma(s, load(k, i, part, 4), found)
                        store(row, i, s, part, 4)
                    delta = v.splat_f32((v.f32_at(values + U(4 * j)) - v.hsum(found)) * beta)
                    total = v.zero_f32()
                    for i in range(0, n, 16):
                        part = min(16, n - i)
                        s = v.fma(load(k, i, part, 4), delta, load(row, i, part, 4))
                        total = v.fma(s, load(q, i, part, 4), total)
                        store(row, i, s, part, 4)
                    v.put_f32(y + U(4 * j), v.hsum(total) * scale)
                slot = tokens - 1 - t
                if 0 < slot < kept:
                    v.copy_bytes(state + U(slot * seqs * heads * size), state, size)

    return kernel
