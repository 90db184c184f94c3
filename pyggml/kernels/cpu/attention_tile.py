"""FLASH_ATTN_EXT for many tokens: tiles of `width` queries meet 64 keys at a time, with a running maximum and sum.

Owns the blocked way only; `split_kv` and `combine` for single tokens are in attention.py. A column is a (token, head) pair
of the heads that share keys; GROUP tiles of columns share each unpacked chunk of keys and values. A chunk whose mask
hides it from all of them is skipped, which halves a causal prompt, and so is a tile that sees nothing of it: where
sequences share a stream of cells, most do.

Work memory of a thread, in order, all f32 but the first:
  a CALL record | scores [16][64] | weights [64][16] | top, sum [GROUP][width] each | factors [16]
  | queries [GROUP][d][width] | rows of keys [64][d] | keys 4 x [d][16] | values [64][dv] | the same as they are, where
  some are not finite | result [GROUP][width][dv]
where d and dv are the head sizes of k and v, rounded up to 16.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from pyggml.kernels.cpu.attention_rows import CALL

CHUNK = 64
GROUP = 4
HIDDEN, MASKED, OPEN = 0, 1, 2


def _round16(n):
    return (n + 15) // 16 * 16


def fixed_areas(width: int) -> list[int]:
    """Byte offsets of scores, weights, top, sum, factors, and of what follows."""
    sizes = [CALL.itemsize, 4 * 16 * 64, 4 * (64 * 16 + 16), *[4 * _round16(GROUP * width)] * 2, 64]
    return [sum(sizes[: i + 1]) for i in range(len(sizes))]


@functools.lru_cache(256)
def work_memory(d: int, dv: int, width: int) -> tuple[tuple[int, ...], int]:
    """(byte offsets of the rows of keys, keys, values, odd values and the result; bytes in all)."""
    d, dv = _round16(d), _round16(dv)
    sizes = [GROUP * d * width, 64 * d, 64 * d, 64 * dv, 64 * dv, GROUP * width * dv + 16]
    ends = [fixed_areas(width)[-1] + 4 * sum(map(_round16, sizes[: i + 1])) for i in range(len(sizes))]
    return tuple(ends[:-1]), ends[-1]


class TileArgs(NamedTuple):
    """shared, blocks: as attention.SplitArgs has them; then the offsets of `work_memory`."""

    shared: int
    blocks: int
    rows: int
    keys: int
    values: int
    odd: int
    result: int


def tiled(width):
    """-> kernel: src q, k, v, mask, sinks -> dst; scratch: the thread's work memory; calls: `unpack` for k and for v. Takes
    TileArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args
    from pyggml.kernels.cpu.attention_scores import MASKED_SCORE, alibi_slope, score_ops

    U = v.U
    np = v.np
    ops = v.TileOps(width)
    zero, fma_columns, store_columns, load_scaled = (
        ops.zero,
        ops.fma_columns,
        ops.store_columns,
        ops.load_scaled,
    )
    turn = v.transposer(v.load_f32)
    (score, add_mask, weight), slope_of = score_ops(), alibi_slope()
    scale_of, bias_of, softcap_of = (record.param_f32(i) for i in range(3))
    head, n_tokens, n_head, n_batch = (record.field("src0.ne", i) for i in range(4))
    n_kv, k_heads = record.field("src1.ne", 1), record.field("src1.ne", 2)
    v_head, v_heads = record.field("src2.ne"), record.field("src2.ne", 2)
    mask2, mask3, mask_data = record.field("src3.ne", 2), record.field("src3.ne", 3), record.field("src3.data")
    q_at, k_at, v_at, mask_at = (record.element(f"src{i}") for i in range(4))
    k_row, v_row = record.field("src1.nb", 1), record.field("src2.nb", 1)
    sinks, dst, aborted = record.field("src4.data"), record.element("dst"), record.aborted()
    work_at, own_bytes = record.field("scratch"), record.field("thread_bytes")
    shared_of, blocks_of, rows_at, keys_at, values_at, odd_at, result_at = step_args.readers(TileArgs)
    unpack_k, unpack_v = record.field("calls"), record.field("calls", 1)
    scores_at, weights_at, top_at, sum_at, factor_at, queries_at = (U(n) for n in fixed_areas(width))
    minus_inf, masked_score = np.float32(-np.inf), np.float32(MASKED_SCORE)
    chunk, group_columns, columns_each = CHUNK, GROUP * width, width
    zero_f = np.float32(0.0)
    call_rows, call_stride, call_count, call_n, call_out, call_out_apart, call_finite = (
        U(CALL.fields[name][1]) for name in ("rows", "stride", "count", "n", "out", "out_stride", "finite")
    )

    @v.device
    def token_head(step, column, block):
        """(token, head) of a column; the heads of a block are neighbours, then tokens."""
        shared = shared_of(step)
        return column // shared, block * shared + column % shared

    @v.device
    def unpack(function, call, rows, stride, count, n, out, finite):
        """`count` rows of n elements as f32[count][n rounded up to 16]. -> whether some were not finite and are now 0."""
        v.put_i64(call + call_rows, rows)
        v.put_i64(call + call_stride, stride)
        v.put_i64(call + call_count, count)
        v.put_i64(call + call_n, n)
        v.put_i64(call + call_out, out)
        v.put_i64(call + call_out_apart, (n + 15) // 16 * 64)
        v.put_i64(call + call_finite, finite)
        v.call_kernel(function, call, 0, 1)
        return v.i64_at(call + call_finite) == 2

    @v.device
    def pack_queries(step, at, first, count, block, i3):
        """Columns first ... of one tile; columns beyond `count` repeat the last."""
        d = head(step)
        for c in range(columns_each):
            t, h = token_head(step, first + min(c, count - 1), block)
            q = q_at(step, 0, t, h, i3)
            out = at + U(4 * c)
            for _ in range(d):
                v.put_f32(out, v.f32_at(q))
                q += U(4)
                out += U(4 * columns_each)

    @v.device
    def visible(step, first_token, last_token, block, first, rows, i3):
        """What the mask does to these keys for these tokens: HIDDEN from all, some are MASKED, or OPEN, all zero."""
        shared = shared_of(step)
        none, low = v.splat_f32(minus_inf), v.zero_f32()
        high = v.zero_f32()
        for t in range(first_token, last_token + 1):
            for h in range(block * shared, (block + 1) * shared):
                if h > block * shared and mask2(step) == 1:
                    break
                m = mask_at(step, first, t, h % mask2(step), i3 % mask3(step))
                for j in range(0, rows, 16):
                    have = min(rows - j, 16)
                    bias = v.f16_to_f32(v.load_u16_part(m + U(2 * j), have))
                    part = v.select_part(bias, minus_inf, have)
                    none = v.where_equal(part, v.splat_f32(minus_inf), none, v.zero_f32())  # a NaN hides nothing
                    low = v.maximum(low, v.absolute(bias))
                    high = high + (bias - bias)  # NaN for what is not finite
        if v.hmax(none) == minus_inf:
            return HIDDEN
        if v.hmax(low) == zero_f and v.hsum(high) == zero_f:
            return OPEN
        return MASKED

    @v.device
    def add_odd(values, rows, weights, result, dv):
        """Add weight x value for the elements that are not finite: 0 x NaN must not reach the tokens they are hidden from."""
        for _ in range(rows):
            for c in range(columns_each):
                p = v.f32_at(weights + U(4 * c))
                if p != zero_f:
                    for i in range(0, dv, 16):
                        x = v.load_f32(values + U(4 * i))
                        wrong = x - x
                        at = result + U(4 * (c * dv + i))
                        y = v.load_f32(at)
                        v.store(at, v.where_equal(wrong, wrong, y, y + x * v.splat_f32(p)))
            values += U(4 * dv)
            weights += U(64)

    def kernel(step, ith, nth, thread):
        scale, softcap, max_bias = scale_of(step), softcap_of(step), bias_of(step)
        d, n = head(step), v_head(step)
        dk, dv = (d + 15) // 16 * 16, (n + 15) // 16 * 16
        shared, blocks, masked = shared_of(step), blocks_of(step), mask_data(step) != U(0)
        columns = n_tokens(step) * shared
        groups = (columns + group_columns - 1) // group_columns
        call = work_at(step) + U(thread) * own_bytes(step)
        scores, weights, tops, sums, factors = (
            call + scores_at, call + weights_at, call + top_at, call + sum_at, call + factor_at,
        )  # fmt: skip
        queries, key_rows, keys = call + queries_at, call + U(rows_at(step)), call + U(keys_at(step))
        values, odd_values, results = call + U(values_at(step)), call + U(odd_at(step)), call + U(result_at(step))
        work = n_batch(step) * blocks * groups
        for turns in range((work - ith + nth - 1) // nth):  # in turn: later tiles of a causal prompt see more keys
            w = ith + turns * nth
            first_column, rest = w % groups * group_columns, w // groups
            block, i3 = rest % blocks, rest // blocks
            k_head, kv_head = block // (blocks // k_heads(step)), block // (blocks // v_heads(step))
            count = min(columns - first_column, group_columns)
            tiles = (count + columns_each - 1) // columns_each
            for g in range(tiles):
                at = first_column + g * columns_each
                pack_queries(
                    step, queries + U(4 * g * columns_each * d), at, min(columns - at, columns_each), block, i3
                )
            for i in range(0, tiles * columns_each * dv, 16):
                v.store(results + U(4 * i), v.zero_f32())
            for i in range(tiles * columns_each):
                v.put_f32(tops + U(4 * i), minus_inf)
                v.put_f32(sums + U(4 * i), zero_f)
            first_token = first_column // shared
            last_token = (first_column + count - 1) // shared
            for first in range(0, n_kv(step), chunk):
                if aborted(step):
                    return
                rows = min(n_kv(step) - first, chunk)
                seen = OPEN
                if masked:
                    seen = visible(step, first_token, last_token, block, first, rows, i3)
                    if seen == HIDDEN:
                        continue
                k = k_at(step, 0, first, k_head, i3)
                unpack(unpack_k(step), call, k, k_row(step), rows, d, key_rows, 0)
                for j in range(0, rows, 16):
                    for i in range(0, dk, 16):
                        turn(
                            keys + U(4 * j * dk + 64 * i),
                            key_rows + U(4 * (j * dk + i)),
                            U(4 * dk),
                            min(rows - j, 16) - 1,
                        )
                value = v_at(step, 0, first, kv_head, i3)
                odd = unpack(unpack_v(step), call, value, v_row(step), rows, n, values, 1)
                if odd:
                    unpack(unpack_v(step), call, value, v_row(step), rows, n, odd_values, 0)
                for g in range(tiles):
                    if seen == MASKED and tiles > 1:
                        at = first_column + g * columns_each
                        end = min(at + columns_each, first_column + count) - 1
                        if visible(step, at // shared, end // shared, block, first, rows, i3) == HIDDEN:
                            continue
                    query = queries + U(4 * g * columns_each * d)
                    for j in range(0, rows, 16):
                        acc = zero()
                        y = query
                        x = keys + U(4 * j * dk)
                        for _ in range(d):
                            acc = fma_columns(acc, v.load_f32(x), y)
                            x += U(64)
                            y += U(4 * columns_each)
                        store_columns(acc, scores + U(4 * j), U(4 * chunk), 16, columns_each)
                    for c in range(columns_each):
                        column = min(first_column + g * columns_each + c, columns - 1)
                        t, h = token_head(step, column, block)
                        row = scores + U(4 * chunk * c)
                        at = U(4 * (g * columns_each + c))
                        old = v.f32_at(tops + at)
                        highest = v.splat_f32(old)
                        slope = v.splat_f32(slope_of(h, n_head(step), max_bias))
                        for j in range(0, chunk, 16):
                            have = min(rows - j, 16)
                            s = v.splat_f32(minus_inf)
                            if have > 0:
                                s = score(v.load_f32(row + U(4 * j)), scale, softcap)
                                if seen == MASKED:
                                    m = mask_at(step, first + j, t, h % mask2(step), i3 % mask3(step))
                                    s = add_mask(s, v.f16_to_f32(v.load_u16_part(m, have)), slope)
                                if have < 16:
                                    s = v.select_part(s, minus_inf, have)
                                highest = v.maximum(s, highest)
                            v.store(row + U(4 * j), s)
                        top = v.hmax(highest)
                        total = v.zero_f32()
                        for j in range(0, chunk, 16):
                            p = weight(v.load_f32(row + U(4 * j)), top)
                            v.store(row + U(4 * j), p)
                            total = total + p
                        factor = np.float32(1.0)
                        if old != top:
                            factor = v.lane(v.exp(v.splat_f32(old - top)), 0)
                        v.put_f32(tops + at, top)
                        v.put_f32(sums + at, v.f32_at(sums + at) * factor + v.hsum(total))
                        v.put_f32(factors + U(4 * c), factor)
                    for j in range(0, chunk, 16):
                        turn(weights + U(64 * j), scores + U(4 * j), U(4 * chunk), columns_each - 1)
                    result = results + U(4 * g * columns_each * dv)
                    for i in range(0, dv, 16):
                        acc = load_scaled(result + U(4 * i), U(4 * dv), factors)
                        x = values + U(4 * i)
                        y = weights
                        for _ in range(rows):
                            acc = fma_columns(acc, v.load_f32(x), y)
                            x += U(4 * dv)
                            y += U(64)
                        store_columns(acc, result + U(4 * i), U(4 * dv), 16, columns_each)
                    if odd:
                        add_odd(odd_values, rows, weights, result, dv)
            for c in range(count):
                t, h = token_head(step, first_column + c, block)
                top, total = v.f32_at(tops + U(4 * c)), v.f32_at(sums + U(4 * c))
                factor = np.float32(1.0)
                if sinks(step) != U(0):
                    sink = v.f32_at(sinks(step) + U(4 * h))
                    new = max(top, sink)
                    factor = v.lane(v.exp(v.splat_f32(top - new)), 0)
                    total = total * factor + v.lane(v.exp(v.splat_f32(sink - new)), 0)
                    top = new
                if top == masked_score:
                    factor = np.float32(np.nan)
                elif total != zero_f:
                    factor = factor / total
                out = dst(step, 0, h, t, i3)
                for i in range(0, n, 16):
                    x = v.load_f32(results + U(4 * (c * dv + i))) * v.splat_f32(factor)
                    v.store_part(out + U(4 * i), x, min(n - i, 16))

    return kernel
