"""FLASH_ATTN_EXT on tensor cores for heads of more than 128 elements, those of values and of keys also of different sizes. Compute
capability 8.0.

A row is a query of one head, as in `attention_tile.py`. A block has 16 or 32 rows, four warps for 16, and takes 64 keys at a time in
parts of 64 elements: while one part is multiplied the next one comes. For the scores each of the four has 16 of the keys, and
for the sums 16 elements of each part of the values; so that sums of 512 elements take 64 registers. Queries and weights lie in shared
memory, as F16. Where rows are few, blocks share the keys, and the last one adds up what all have found.

Keys that the mask hides from a whole block are not looked at; others must be numbers, also where the mask hides them.
Owns tiles and fragments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.attention_join import LOG2E, capping, over_blocks, sharing
from pyggml.kernels.cuda.attention_load import Tiled, block_halves, is_packed, is_tiled, tiled
from pyggml.kernels.cuda.attention_operands import Shared
from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import blocks
from pyggml.kernels.cuda.spec import Spec

if TYPE_CHECKING:
    from pyggml.kernels.cuda.attention_operands import Operands
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

KEYS, PART = 64, 64
"""Keys at a time, elements of a part."""
STRIDE = 2 * PART + 16
"""Bytes from row to row of a tile, eight of which then lie in different banks."""
TILE = KEYS * STRIDE
MOST_KEY, MOST_VALUE = 576, 512
FEW_ROWS, MANY_ROWS = 16, 32
FLAGS = 64


def takes(cc: tuple[int, int], node: Tensor, x: Operands) -> bool:
    """Whether this kernel can do it: this GPU, these types, large heads of whole tiles, addresses that are aligned."""
    key, value = x.q.ne[0], x.v.ne[0]
    return max(key, value) > 128 and key <= MOST_KEY and value <= MOST_VALUE and is_tiled(cc, node, x)


def query_bytes(key_size: int) -> int:
    return 2 * PART * blocks(key_size, PART) + 16


def shared_bytes(key_size: int, rows: int) -> int:
    """Flags, maxima, queries, weights, and two parts of keys or values: 61 KB for keys of 576 elements."""
    return FLAGS + rows * (16 + query_bytes(key_size) + STRIDE) + 2 * TILE


def lower(builder: Builder, node: Tensor, x: Operands) -> None:
    head, n_tokens, n_head, n_batch = x.q.ne
    heads, value = x.k.ne[2] * n_batch, x.v.ne[0]
    rows = n_tokens * (n_head // x.k.ne[2])
    each = FEW_ROWS if rows <= FEW_ROWS else MANY_ROWS
    row_blocks = blocks(rows, each)
    args = WideArgs(x.args, tiled=tiled(builder, x, row_blocks, blocks(x.k.ne[1], KEYS)))
    spec = Spec("attention_wide", "attend", (head, value, each, int(is_packed(x.k, x.v))))
    builder.launch(spec, (row_blocks, heads, args.tiled.splits), 8 * each, args, shared_bytes(head, each))


class WideArgs(NamedTuple):
    shared: Shared
    tiled: Tiled


def loading(threads: int, packed: int):
    """-> f(to, at, step, last, size, ...): part `part` of KEYS rows of `size` elements on its way to a tile; rows behind `last` are that
    one again, elements behind the size are 0."""
    from pyggml.kernels.cuda import device as d

    halves = block_halves() if packed else None
    turns = KEYS * PART // 8 // threads

    @d.inline
    def load(to, at, step, first, last, size, part, kind, block, start):
        me = d.i32(d.thread())
        for n in range(turns):
            i = d.i32(me + threads * n)
            row, e = d.i32(i >> 3), d.i32(part * PART + 8 * (i & 7))
            place = to + row * STRIDE + (i & 7) * 16
            line = at + min(first + row, last) * step
            if e < size:
                if packed:
                    halves(place, line, e, kind, block, start)
                else:
                    d.cp_async16(place, line + e * 2)
            else:
                d.sst_i32x4(place, 0, 0, 0, 0)
        d.cp_async_commit()

    return load


def attend(head_k, head_v, block_rows, packed):
    from pyggml.kernels.cuda import device as d

    threads = 8 * block_rows
    load, capped, share_of = loading(threads, packed), capping(), sharing()
    add = over_blocks(head_v, threads, False)
    key_parts, value_parts = blocks(head_k, PART), blocks(head_v, PART)
    parts, n_results = key_parts + value_parts, 8 * value_parts
    query_step, pairs = query_bytes(head_k), PART * key_parts // 2

    @entry(WideArgs, threads, blocks=1 if head_v > 256 else 2)
    def kernel(
        y, y0, y1, y2, y3, q, q0, q1, q2, q3, k, k0, k1, k2, k3, v, v0, v1, v2, v3, mask, mask0, mask1, mask2,
        mask3, key_size, value_size, n_kv, n_tokens, n_head, ratio_k, ratio_v, mask_heads, mask_batches, slopes, sinks, sink_step, scale,
        softcap, sums, meta, splits, steps, kind_k, size_k, start_k, kind_v, size_v, start_v, ticket,
    ):  # fmt: skip
        lowest = d.bits_float(-8388608)  # -inf
        me = d.i32(d.thread())
        lane, warp = d.i32(me & 31), d.i32(me >> 5)
        g, t = d.i32(lane >> 2), d.i32(lane & 3)
        corner, inside = d.i32(lane >> 3), d.i32(lane & 7)
        quarter, group = d.i32(warp & 3), d.i32((warp >> 2) * 16)
        heads = d.udiv(n_head, ratio_k)
        z = d.udiv(d.block_y(), heads)
        key_head = d.i32(d.block_y() - z * heads)
        rows = d.i32(n_tokens * ratio_k)
        row0 = d.i32(d.block_x() * block_rows)
        flags = d.shared()
        maxima = d.i32(flags + FLAGS)
        queries = d.i32(maxima + 16 * block_rows)
        weights = d.i32(queries + block_rows * query_step)
        tiles = d.i32(weights + block_rows * STRIDE)
        i = me
        while i < block_rows * pairs:
            r = d.udiv(i, pairs)
            part = d.i32(i - r * pairs)
            row = d.i32(row0 + r)
            x0, x1 = d.f32(0), d.f32(0)
            if row < rows and 2 * part < head_k:
                token = d.udiv(row, ratio_k)
                h = key_head * ratio_k + d.urem(row, ratio_k)
                x0, x1 = d.ld_f32x2(q + token * q1 + h * q2 + z * q3 + part * 8)
            d.sst_i32(queries + r * query_step + part * 4, d.pack_f16(x0, x1))
            i = d.i32(i + threads)
        # the two rows of this lane
        biases, slope = d.cuda.local.array(2, d.i64), d.cuda.local.array(2, d.f32)
        top, total = d.cuda.local.array(2, d.f32), d.cuda.local.array(2, d.f32)
        for r in range(2):
            row = min(d.i32(row0 + group + g + 8 * r), rows - 1)
            token = d.udiv(row, ratio_k)
            h = key_head * ratio_k + d.urem(row, ratio_k)
            biases[r] = mask + token * mask1 + d.urem(h, mask_heads) * mask2 + d.urem(z, mask_batches) * mask3
            slope[r] = d.f32(LOG2E)
            if slopes != 0:
                slope[r] = d.ld_f32(slopes + 4 * h) * d.f32(LOG2E)
            top[r], total[r] = lowest, d.f32(0)
        result, s, w = d.cuda.local.array(n_results, d.f32), d.cuda.local.array(8, d.f32), d.cuda.local.array(16, d.i32)
        for i in range(n_results):
            result[i] = d.f32(0)
        query_rows = d.i32(queries + (group + (lane & 15)) * query_step + (lane >> 4) * 16)
        weight_rows = d.i32(weights + (group + (lane & 15)) * STRIDE + (lane >> 4) * 16)
        key_rows = d.i32((16 * quarter + (corner >> 1) * 8 + inside) * STRIDE + (corner & 1) * 16)
        value_rows = d.i32(((corner & 1) * 8 + inside) * STRIDE + (corner >> 1) * 16 + 32 * quarter)
        keys_at, values_at = k + key_head * k2 + z * k3, v + key_head * v2 + z * v3
        by = scale * d.f32(LOG2E)
        first = d.i32(d.block_z() * steps * KEYS)
        end = min(n_kv, d.i32(first + steps * KEYS))
        side, at = d.i32(0), d.i32(0)
        while first < end:
            seen = d.f32(0)
            for j in range(2):
                for e in range(4):
                    key = first + 16 * quarter + 8 * j + 2 * t + (e & 1)
                    bias = lowest
                    if key < n_kv:
                        bias = d.f32(0)
                        if mask != 0:
                            bias = slope[e >> 1] * d.ld_f16(biases[e >> 1] + key * mask0)
                        if bias != lowest:
                            seen = d.f32(1)
                    s[4 * j + e] = bias
            seen = d.warp_max(seen)
            if lane == 0:
                d.sst_f32(flags + side * 32 + warp * 4, seen)
            d.barrier()
            f0, f1, f2, f3 = d.sld_f32x4(flags + side * 32)
            seen = d.fmaximum(d.fmaximum(f0, f1), d.fmaximum(f2, f3))
            if block_rows == MANY_ROWS:
                f0, f1, f2, f3 = d.sld_f32x4(flags + side * 32 + 16)
                seen = d.fmaximum(seen, d.fmaximum(d.fmaximum(f0, f1), d.fmaximum(f2, f3)))
            side = d.i32(1 - side)
            if seen != d.f32(0):
                a0, a1, a2, a3 = d.f32(0), d.f32(0), d.f32(0), d.f32(0)
                c0, c1, c2, c3 = d.f32(0), d.f32(0), d.f32(0), d.f32(0)
                part = d.i32(-1)
                while part < parts:
                    d.cp_async_wait()
                    d.barrier()
                    ahead = d.i32(part + 1)
                    if ahead < parts:
                        line, step, size, which = keys_at, k1, d.i32(head_k), ahead
                        kind, block, start = kind_k, size_k, start_k
                        if ahead >= key_parts:
                            line, step, size, which = values_at, v1, d.i32(head_v), d.i32(ahead - key_parts)
                            kind, block, start = kind_v, size_v, start_v
                        load(tiles + TILE - at, line, step, first, n_kv - 1, size, which, kind, block, start)
                    if part >= key_parts:
                        if part == key_parts:
                            for i in range(4):
                                w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3] = d.ldmatrix_x4(weight_rows + 32 * i)
                        for p in range(value_parts):  # one of them, by numbers that are known: sums are registers
                            if part - key_parts == p:
                                o = 8 * p
                                for i in range(4):
                                    b0, b1, b2, b3 = d.ldmatrix_x4_trans(tiles + at + value_rows + 16 * i * STRIDE)
                                    u0, u1, u2, u3 = w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]
                                    result[o], result[o + 1], result[o + 2], result[o + 3] = d.mma_f16(
                                        u0, u1, u2, u3, b0, b1, result[o], result[o + 1], result[o + 2], result[o + 3]
                                    )
                                    result[o + 4], result[o + 5], result[o + 6], result[o + 7] = d.mma_f16(
                                        u0,
                                        u1,
                                        u2,
                                        u3,
                                        b2,
                                        b3,
                                        result[o + 4],
                                        result[o + 5],
                                        result[o + 6],
                                        result[o + 7],
                                    )
                    elif part >= 0:
                        for i in range(4):
                            u0, u1, u2, u3 = d.ldmatrix_x4(query_rows + part * (2 * PART) + 32 * i)
                            b0, b1, b2, b3 = d.ldmatrix_x4(tiles + at + key_rows + 32 * i)
                            a0, a1, a2, a3 = d.mma_f16(u0, u1, u2, u3, b0, b1, a0, a1, a2, a3)
                            c0, c1, c2, c3 = d.mma_f16(u0, u1, u2, u3, b2, b3, c0, c1, c2, c3)
                    if part == key_parts - 1:
                        for e in range(8):
                            x = a0 if e == 0 else a1 if e == 1 else a2 if e == 2 else a3
                            if e > 3:
                                x = c0 if e == 4 else c1 if e == 5 else c2 if e == 6 else c3
                            x = x * by if softcap == d.f32(0) else capped(x * scale, softcap)
                            s[e] = x + s[e] if s[e] != lowest else lowest
                        for r in range(2):
                            most = d.fmaximum(
                                d.fmaximum(s[2 * r], s[2 * r + 1]), d.fmaximum(s[4 + 2 * r], s[5 + 2 * r])
                            )
                            most = d.fmaximum(most, d.shuffle_xor_f32(most, 1))
                            most = d.fmaximum(most, d.shuffle_xor_f32(most, 2))
                            if t == 0:
                                d.sst_f32(maxima + (group + g + 8 * r) * 16 + quarter * 4, most)
                        d.barrier()
                        for r in range(2):
                            f0, f1, f2, f3 = d.sld_f32x4(maxima + (group + g + 8 * r) * 16)
                            most = d.fmaximum(top[r], d.fmaximum(d.fmaximum(f0, f1), d.fmaximum(f2, f3)))
                            base = d.f32(0) if most == lowest else most
                            keep = d.ex2(top[r] - base)
                            top[r] = most
                            more = d.f32(0)
                            for j in range(2):
                                x0, x1 = d.ex2(s[4 * j + 2 * r] - base), d.ex2(s[4 * j + 2 * r + 1] - base)
                                more = more + (x0 + x1)
                                to = weights + (group + g + 8 * r) * STRIDE + 32 * quarter + 16 * j + 4 * t
                                d.sst_i32(to, d.pack_f16(x0, x1))
                            total[r] = total[r] * keep + more
                            for i in range(2 * value_parts):
                                for e in range(2):
                                    result[4 * i + 2 * r + e] = result[4 * i + 2 * r + e] * keep
                    at = d.i32(TILE - at)
                    part = ahead
            first = d.i32(first + KEYS)
        # a row's sum of weights: of its four lanes, and of its four warps
        for r in range(2):
            x = total[r] + d.shuffle_xor_f32(total[r], 1)
            x = x + d.shuffle_xor_f32(x, 2)
            if t == 0:
                d.sst_f32(maxima + (group + g + 8 * r) * 16 + quarter * 4, x)
        d.barrier()
        base = d.i64(d.block_y()) * rows + row0
        for r in range(2):
            mine = d.i32(group + g + 8 * r)
            row = d.i32(row0 + mine)
            if row < rows:
                f0, f1, f2, f3 = d.sld_f32x4(maxima + mine * 16)
                whole = (f0 + f1) + (f2 + f3)
                by = d.f32(1)
                if splits > 1:
                    entry_at = (base + mine) * splits + d.block_z()
                    to = sums + entry_at * (4 * head_v)
                    if quarter == 0 and t == 0:
                        d.st_f32x2(meta + entry_at * 8, top[r], whole)
                else:
                    token = d.udiv(row, ratio_k)
                    h = key_head * ratio_k + d.urem(row, ratio_k)
                    by = share_of(top[r], whole, h, sinks, sink_step)
                    to = y + h * y1 + token * y2 + z * y3
                for i in range(2 * value_parts):
                    e = (i >> 1) * PART + 16 * quarter + 8 * (i & 1) + 2 * t
                    if e < head_v:
                        d.st_f32x2(to + e * 4, result[4 * i + 2 * r] * by, result[4 * i + 2 * r + 1] * by)
        add(base, min(block_rows, rows - row0), sums, meta, splits, ticket, y, y0, y1, y2, y3, z, key_head, ratio_k, row0, sinks,
            sink_step, 0, 0, 0, n_tokens)  # fmt: skip

    return kernel
