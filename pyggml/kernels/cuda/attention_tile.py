"""FLASH_ATTN_EXT on tensor cores, for keys and values of F16 and of blocks that become F16 on their way into shared
memory. Compute capability 8.0.

A row is a query of one head; the heads that share keys are neighbours, so that 16 rows meet the same keys. Tiled: four
warps of 16 rows each share 32 keys at a time. `split_kv`, for decoding: the warps have the same 16 rows and 16 keys each, blocks
share the cache between them, and the last one adds up what all have found. Weights of keys are rounded to F16, sums are F32.

Keys that the mask hides from a whole block are not looked at; others must be numbers, also where the mask hides them.
Owns tiles and fragments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.activations import GROUP, wanted
from pyggml.kernels.cuda.attention_join import LOG2E, THREADS, WARPS, capping, joining, sharing
from pyggml.kernels.cuda.attention_load import Tiled, block_halves, is_packed, is_tiled, tiled
from pyggml.kernels.cuda.attention_operands import Shared
from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import blocks
from pyggml.kernels.cuda.spec import Spec, i32, i64

if TYPE_CHECKING:
    from pyggml.kernels.cuda.attention_operands import Operands
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

KEYS_TILED, KEYS_SPLIT = 32, 16
MOST_HEAD = 128
SPLIT_ROWS = 32
FLAGS = 32


def takes(cc: tuple[int, int], node: Tensor, x: Operands) -> bool:
    """Whether these kernels can do it: this GPU, these types, heads of whole tiles, addresses that are aligned."""
    return x.q.ne[0] <= MOST_HEAD and x.v.ne[0] == x.q.ne[0] and is_tiled(cc, node, x)


def lower(builder: Builder, node: Tensor, x: Operands) -> None:
    head, n_tokens, n_head, n_batch = x.q.ne
    heads = x.k.ne[2] * n_batch
    rows = n_tokens * (n_head // x.k.ne[2])
    row_bytes, packed = 2 * head + 16, int(is_packed(x.k, x.v))
    if rows > SPLIT_ROWS:
        args = AttendArgs(x.args, tiled=tiled(builder, x), made_q=0, made_scales=0, made_step=0)
        spec, shared = Spec("attention_tile", "attend", (head, 0, packed)), FLAGS + 2 * KEYS_TILED * row_bytes
        builder.launch(spec, (blocks(rows, 16 * WARPS), heads), THREADS, args, shared)
        return
    row_blocks, made = blocks(rows, 16), None
    given = tiled(builder, x, row_blocks, blocks(x.k.ne[1], KEYS_SPLIT * WARPS))
    if head % 32 == 0 and head * n_head % GROUP == 0:
        made = wanted(builder, node, head * n_head)
    q, q_scales, q_step = (0, 0, 0) if made is None else made
    args = AttendArgs(x.args, tiled=given, made_q=q, made_scales=q_scales, made_step=q_step)
    spec, shared = (
        Spec("attention_tile", "attend", (head, 1, packed)),
        FLAGS + (16 + 2 * KEYS_SPLIT * WARPS) * row_bytes,
    )
    builder.launch(spec, (row_blocks, heads, given.splits), THREADS, args, shared)


class AttendArgs(NamedTuple):
    """made_q ...: where a token's results go as bytes too (0: nowhere)."""

    shared: Shared
    tiled: Tiled
    made_q: i64
    made_scales: i64
    made_step: i32


def attend(head, split_kv, packed):
    from pyggml.kernels.cuda import device as d

    halves = block_halves() if packed else None
    join, capped, share_of = joining(head), capping(), sharing()
    keys = KEYS_SPLIT if split_kv else KEYS_TILED
    row_bytes = 2 * head + 16
    deep, wide, tiles = head // 16, head // 8, keys // 8
    n_queries, n_results, n_scores = deep * 4, wide * 4, tiles * 4
    chunks = keys * head // 8  # of 16 bytes, of keys or of values
    loaders = 32 if split_kv else THREADS
    tile_bytes = keys * row_bytes
    shared_rows = WARPS * tile_bytes if split_kv else tile_bytes

    @entry(AttendArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, q, q0, q1, q2, q3, k, k0, k1, k2, k3, v, v0, v1, v2, v3, mask, mask0, mask1, mask2,
        mask3, key_size, value_size, n_kv, n_tokens, n_head, ratio_k, ratio_v, mask_heads, mask_batches, slopes, sinks, sink_step, scale,
        softcap, sums, meta, splits, steps, kind_k, size_k, start_k, kind_v, size_v, start_v,
        ticket, made_q, made_scales, made_step,
    ):  # fmt: skip
        lowest = d.bits_float(-8388608)  # -inf
        me = d.i32(d.thread())
        lane, warp = d.i32(me & 31), d.i32(me >> 5)
        g, t = d.i32(lane >> 2), d.i32(lane & 3)
        heads = d.udiv(n_head, ratio_k)
        z = d.udiv(d.block_y(), heads)
        key_head = d.i32(d.block_y() - z * heads)
        rows = d.i32(n_tokens * ratio_k)
        row0 = d.i32(d.block_x() * 16) if split_kv else d.i32(d.block_x() * (16 * WARPS) + warp * 16)
        # the two rows of this lane
        biases, slope = d.cuda.local.array(2, d.i64), d.cuda.local.array(2, d.f32)
        query, valid = d.cuda.local.array(2, d.i64), d.cuda.local.array(2, d.i32)
        for r in range(2):
            row = d.i32(row0 + g + 8 * r)
            token = d.udiv(min(row, rows - 1), ratio_k)
            h = key_head * ratio_k + d.urem(min(row, rows - 1), ratio_k)
            valid[r] = row < rows
            query[r] = q + token * q1 + h * q2 + z * q3
            biases[r] = mask + token * mask1 + d.urem(h, mask_heads) * mask2 + d.urem(z, mask_batches) * mask3
            slope[r] = d.f32(LOG2E)
            if slopes != 0:
                slope[r] = d.ld_f32(slopes + 4 * h) * d.f32(LOG2E)
        flags = d.shared()
        key_rows = d.i32(flags + FLAGS)
        queries = d.cuda.local.array(n_queries, d.i32)
        query_rows = d.i32(key_rows + (lane & 15) * row_bytes + (lane >> 4) * 16)
        if split_kv:  # all warps have the same 16 rows: they stay in shared memory
            i = me
            while i < 8 * head:
                r = d.udiv(i, head // 2)
                part = d.i32(i - r * (head // 2))
                row = d.i32(row0 + r)
                x0, x1 = d.f32(0), d.f32(0)
                if row < rows:
                    token = d.udiv(row, ratio_k)
                    h = key_head * ratio_k + d.urem(row, ratio_k)
                    x0, x1 = d.ld_f32x2(q + token * q1 + h * q2 + z * q3 + part * 8)
                d.sst_i32(key_rows + r * row_bytes + part * 4, d.pack_f16(x0, x1))
                i = d.i32(i + THREADS)
            d.barrier()
            key_rows = d.i32(key_rows + 16 * row_bytes)
        else:
            for i in range(deep):
                for e in range(4):
                    x0, x1 = d.f32(0), d.f32(0)
                    if valid[e & 1]:
                        x0, x1 = d.ld_f32x2(query[e & 1] + (16 * i + 8 * (e >> 1) + 2 * t) * 4)
                    queries[4 * i + e] = d.pack_f16(x0, x1)
        result, s = d.cuda.local.array(n_results, d.f32), d.cuda.local.array(n_scores, d.f32)
        for i in range(n_results):
            result[i] = d.f32(0)
        top, total = d.cuda.local.array(2, d.f32), d.cuda.local.array(2, d.f32)
        for r in range(2):
            top[r], total[r] = lowest, d.f32(0)
        if split_kv:
            key_rows = d.i32(key_rows + warp * tile_bytes)
        value_rows = d.i32(key_rows + shared_rows)
        keys_at, values_at = k + key_head * k2 + z * k3, v + key_head * v2 + z * v3
        by = scale * d.f32(LOG2E)
        first, end, step = d.i32(0), n_kv, d.i32(keys)
        if split_kv:
            first = d.i32((d.block_z() * steps * WARPS + warp) * keys)
            end = min(n_kv, d.i32((d.block_z() + 1) * steps * WARPS * keys))
            step = d.i32(keys * WARPS)
        side = d.i32(0)
        while first < end:
            seen = d.f32(0)
            for j in range(tiles):
                for e in range(4):
                    key = first + 8 * j + 2 * t + (e & 1)
                    bias = lowest
                    if key < n_kv:
                        bias = d.f32(0)
                        if mask != 0:
                            bias = slope[e >> 1] * d.ld_f16(biases[e >> 1] + key * mask0)
                        if bias != lowest:
                            seen = d.f32(1)
                    s[4 * j + e] = bias
            seen = d.warp_max(seen)
            if not split_kv:
                if lane == 0:
                    d.sst_f32(flags + side * 16 + warp * 4, seen)
                d.barrier()
                f0, f1, f2, f3 = d.sld_f32x4(flags + side * 16)
                seen = d.fmaximum(d.fmaximum(f0, f1), d.fmaximum(f2, f3))
                side = d.i32(1 - side)
            if seen != d.f32(0):
                if split_kv:
                    d.warp_barrier()
                i = lane if split_kv else me
                while packed and i < 2 * chunks:
                    line = d.udiv(i, wide)
                    part = d.i32(i - line * wide)
                    row, to = keys_at + min(first + line, n_kv - 1) * k1, key_rows + line * row_bytes
                    kind, size, start = kind_k, size_k, start_k
                    if line >= keys:
                        line = d.i32(line - keys)
                        row, to = values_at + min(first + line, n_kv - 1) * v1, value_rows + line * row_bytes
                        kind, size, start = kind_v, size_v, start_v
                    halves(to + part * 16, row, part * 8, kind, size, start)
                    i = d.i32(i + loaders)
                while not packed and i < chunks:
                    row = d.udiv(i, wide)
                    part = d.i32(i - row * wide) * 16
                    key = min(first + row, n_kv - 1)
                    d.cp_async16(key_rows + row * row_bytes + part, keys_at + key * k1 + part)
                    d.cp_async16(value_rows + row * row_bytes + part, values_at + key * v1 + part)
                    i = d.i32(i + loaders)
                d.cp_async_commit()
                d.cp_async_wait()
                if split_kv:
                    d.warp_barrier()
                else:
                    d.barrier()
                corner, inside = lane >> 3, lane & 7
                for pair in range(tiles // 2):
                    a0, a1, a2, a3 = d.f32(0), d.f32(0), d.f32(0), d.f32(0)
                    c0, c1, c2, c3 = d.f32(0), d.f32(0), d.f32(0), d.f32(0)
                    at = key_rows + (16 * pair + (corner >> 1) * 8 + inside) * row_bytes + (corner & 1) * 16
                    for i in range(deep):
                        b0, b1, b2, b3 = d.ldmatrix_x4(at + 32 * i)
                        if split_kv:
                            u0, u1, u2, u3 = d.ldmatrix_x4(query_rows + 32 * i)
                        else:
                            u0, u1, u2, u3 = queries[4 * i], queries[4 * i + 1], queries[4 * i + 2], queries[4 * i + 3]
                        a0, a1, a2, a3 = d.mma_f16(u0, u1, u2, u3, b0, b1, a0, a1, a2, a3)
                        c0, c1, c2, c3 = d.mma_f16(u0, u1, u2, u3, b2, b3, c0, c1, c2, c3)
                    for e in range(8):
                        x = a0 if e == 0 else a1 if e == 1 else a2 if e == 2 else a3
                        if e > 3:
                            x = c0 if e == 4 else c1 if e == 5 else c2 if e == 6 else c3
                        x = x * by if softcap == d.f32(0) else capped(x * scale, softcap)
                        bias = s[8 * pair + e]
                        s[8 * pair + e] = x + bias if bias != lowest else lowest
                keep = d.cuda.local.array(2, d.f32)
                for r in range(2):
                    most = top[r]
                    for j in range(tiles):
                        most = d.fmaximum(most, d.fmaximum(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]))
                    most = d.fmaximum(most, d.shuffle_xor_f32(most, 1))
                    most = d.fmaximum(most, d.shuffle_xor_f32(most, 2))
                    base = d.f32(0) if most == lowest else most
                    keep[r] = d.ex2(top[r] - base)
                    top[r] = most
                    more = d.f32(0)
                    for j in range(tiles):
                        for e in range(2):
                            w = d.ex2(s[4 * j + 2 * r + e] - base)
                            s[4 * j + 2 * r + e] = w
                            more = more + w
                    total[r] = total[r] * keep[r] + more
                for i in range(wide):
                    for e in range(4):
                        result[4 * i + e] = result[4 * i + e] * keep[e >> 1]
                for pair in range(tiles // 2):
                    p = 8 * pair
                    w0, w1 = d.pack_f16(s[p], s[p + 1]), d.pack_f16(s[p + 2], s[p + 3])
                    w2, w3 = d.pack_f16(s[p + 4], s[p + 5]), d.pack_f16(s[p + 6], s[p + 7])
                    at = value_rows + (16 * pair + (corner & 1) * 8 + inside) * row_bytes + (corner >> 1) * 16
                    for i in range(deep):
                        b0, b1, b2, b3 = d.ldmatrix_x4_trans(at + 32 * i)
                        o = 8 * i
                        result[o], result[o + 1], result[o + 2], result[o + 3] = d.mma_f16(
                            w0, w1, w2, w3, b0, b1, result[o], result[o + 1], result[o + 2], result[o + 3]
                        )
                        result[o + 4], result[o + 5], result[o + 6], result[o + 7] = d.mma_f16(
                            w0, w1, w2, w3, b2, b3, result[o + 4], result[o + 5], result[o + 6], result[o + 7]
                        )
            first = d.i32(first + step)
        for r in range(2):
            x = total[r]
            x = x + d.shuffle_xor_f32(x, 1)
            total[r] = x + d.shuffle_xor_f32(x, 2)
        if split_kv:
            # what the warps found, beside each other in the memory of the tiles
            tops = d.i32(d.shared() + FLAGS)
            found = d.i32(tops + 16 * WARPS * 8)
            d.barrier()
            for r in range(2):
                at = d.i32(warp * 16 + g + 8 * r)
                if t == 0:
                    d.sst_f32x2(tops + at * 8, top[r], total[r])
                for i in range(wide):
                    d.sst_f32x2(
                        found + (at * head + 8 * i + 2 * t) * 4, result[4 * i + 2 * r], result[4 * i + 2 * r + 1]
                    )
            d.barrier()
            join(
                tops, found, y, y0, y1, y2, y3, z, key_head, ratio_k, rows, row0, sinks, sink_step, sums, meta, splits, ticket,
                made_q, made_scales, made_step, n_tokens,
            )  # fmt: skip
        else:
            for r in range(2):
                row = d.i32(row0 + g + 8 * r)
                if row < rows:
                    token = d.udiv(row, ratio_k)
                    h = key_head * ratio_k + d.urem(row, ratio_k)
                    share = share_of(top[r], total[r], h, sinks, sink_step)
                    to = y + h * y1 + token * y2 + z * y3
                    for i in range(wide):
                        at = to + (8 * i + 2 * t) * 4
                        d.st_f32x2(at, result[4 * i + 2 * r] * share, result[4 * i + 2 * r + 1] * share)

    return kernel
