"""GATED_LINEAR_ATTN, RWKV_WKV6, RWKV_WKV7: a state of S x S numbers a head that each token changes. Knows no soft max.

The states live in the result while they change. What can be computed apart goes through all tokens of its sequence:
16 columns of a head's state (the first two ops), or 16 rows. Sources: ggml-cpu/ops.cpp: ggml_compute_forward_gla_f32,
ggml_compute_forward_rwkv_wkv6_f32, ggml_compute_forward_rwkv_wkv7_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.jit import Spec
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return None if node.is_contiguous else f"{Op(node.op).name}: the result is not contiguous"


def lower(builder: Builder, node: Tensor) -> None:
    state = node.src[-1]
    assert state is not None
    spec = Spec("linear_attention", "rows" if node.op == Op.RWKV_WKV7 else "columns")
    if node.op == Op.GATED_LINEAR_ATTN:
        builder.step(spec, node, node.src, args=ColumnsArgs(state.ne[1], seen_after=1))
        return
    if node.op == Op.RWKV_WKV6:
        k, v, r, bonus, decay, _ = node.src
        builder.step(spec, node, (k, v, r, decay, state, bonus), args=ColumnsArgs(state.ne[1], seen_after=0))
        return
    builder.step(spec, node, node.src, args=RowsArgs(state.ne[1]))


class ColumnsArgs(NamedTuple):
    """seen_after: 1 = GATED_LINEAR_ATTN, which sees the state after the token; 0 = RWKV_WKV6, which sees the one before
    and the token with its bonus."""

    sequences: int
    seen_after: int


def columns():
    """-> kernel: src k, v, q, g or decay, states, bonus. Takes ColumnsArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    np = v.np
    head, n_head, n_tokens = (record.field("src0.ne", i) for i in range(3))
    k_at, v_at, q_at, g_at, state_at, bonus_at = (record.field(f"src{i}.data") for i in range(6))
    args = step_args.readers(ColumnsArgs)
    dst, sequences, seen_after = record.field("dst.data"), args.sequences, args.seen_after
    factor, aborted = record.param_f32(0), record.aborted()

    def kernel(step, ith, nth, thread):
        size, heads, tokens = head(step), n_head(step), n_tokens(step)
        row, token = U(4 * size), U(4 * size * heads)
        after, scale = seen_after(step) != 0, np.float32(1)
        if after:
            scale = factor(step)
        each = tokens // sequences(step)
        strips = (size + 15) // 16
        work = sequences(step) * heads * strips
        for w in range(work * ith // nth, work * (ith + 1) // nth):
            first, rest = w % strips * 16, w // strips
            h, sequence = rest % heads, rest // heads
            n = min(16, size - first)
            offset = U(4 * ((sequence * heads + h) * size * size + first))
            source, state = state_at(step) + offset, dst(step) + U(tokens) * token + offset
            for _ in range(size):
                v.store_part(state, v.load_f32_part(source, n), n)
                source += row
                state += row
            state -= row * U(size)
            at = U(sequence * each) * token + U(4 * h * size)
            for _ in range(each):
                if aborted(step):
                    return
                x = v.load_f32_part(v_at(step) + at + U(4 * first), n)
                total = v.zero_f32()
                s = state
                k, q, g = k_at(step) + at, q_at(step) + at, g_at(step) + at
                bonus = bonus_at(step) + U(4 * h * size)
                for _ in range(size):
                    old = v.load_f32_part(s, n)
                    kv = x * v.broadcast_f32(k)
                    new = old * v.broadcast_f32(g) + kv
                    seen = new
                    if not after:
                        seen = v.fma(kv, v.broadcast_f32(bonus), old)
                        bonus += U(4)
                    total = v.fma(seen, v.splat_f32(v.f32_at(q) * scale), total)
                    v.store_part(s, new, n)
                    s += row
                    k += U(4)
                    q += U(4)
                    g += U(4)
                v.store_part(dst(step) + at + U(4 * first), total, n)
                at += token

    return kernel


class RowsArgs(NamedTuple):
    sequences: int


def rows():
    """-> kernel: src r, w, k, v, a, b, states. Takes RowsArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    head, n_head, n_tokens = (record.field("src0.ne", i) for i in range(3))
    r_at, w_at, k_at, v_at, a_at, b_at, state_at = (record.field(f"src{i}.data") for i in range(7))
    dst, sequences, aborted = record.field("dst.data"), step_args.readers(RowsArgs).sequences, record.aborted()

    def kernel(step, ith, nth, thread):
        size, heads, tokens = head(step), n_head(step), n_tokens(step)
        row, token = U(4 * size), U(4 * size * heads)
        each = tokens // sequences(step)
        strips = (size + 15) // 16
        work = sequences(step) * heads * strips
        for w in range(work * ith // nth, work * (ith + 1) // nth):
            first, rest = w % strips * 16, w // strips
            h, sequence = rest % heads, rest // heads
            count = min(16, size - first)
            offset = U(4 * ((sequence * heads + h) * size + first)) * U(size)
            state = dst(step) + U(tokens) * token + offset
            v.copy_bytes(state, state_at(step) + offset, 4 * size * count)
            at = U(sequence * each) * token + U(4 * h * size)
            for _ in range(each):
                if aborted(step):
                    return
                s = state
                for i in range(count):
                    mine = at + U(4 * (first + i))
                    x = v.broadcast_f32(v_at(step) + mine)
                    sums = v.zero_f32()
                    for j in range(0, size, 16):
                        n = min(16, size - j)
                        sums = v.fma(
                            v.load_f32_part(s + U(4 * j), n), v.load_f32_part(a_at(step) + at + U(4 * j), n), sums
                        )
                    sa = v.splat_f32(v.hsum(sums))
                    total = v.zero_f32()
                    for j in range(0, size, 16):
                        n = min(16, size - j)
                        here = at + U(4 * j)
                        new = v.load_f32_part(s + U(4 * j), n) * v.load_f32_part(w_at(step) + here, n)
                        new = v.fma(x, v.load_f32_part(k_at(step) + here, n), new)
                        new = v.fma(sa, v.load_f32_part(b_at(step) + here, n), new)
                        v.store_part(s + U(4 * j), new, n)
                        total = v.fma(new, v.load_f32_part(r_at(step) + here, n), total)
                    v.put_f32(dst(step) + mine, v.hsum(total))
                    s += row
                at += token

    return kernel
