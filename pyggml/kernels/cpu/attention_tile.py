"""FLASH_ATTN_EXT for many tokens: tiles of `width` queries meet 64 keys at a time, with a running maximum and sum.

Owns the blocked way only; `few` and `combine` for single tokens are in attention.py. A column is a (token, head) pair
of the heads that share keys; GROUP tiles of columns share each unpacked chunk of keys and values. A chunk whose mask
hides it from all of them is skipped, which halves a causal prompt.

Work memory of a thread, in order, all f32:
  queries [GROUP][d][width] | keys 4 x [d][16] | values [64][dv] | scores [16][64] | weights [64][16]
  | result [GROUP][width][dv] | top, sum [GROUP][width] each | factors [16]
where dv is v's head size rounded up to 16.
"""

from __future__ import annotations

CHUNK = 64
GROUP = 4
HIDDEN, MASKED, OPEN = 0, 1, 2


def _round16(n):
    return (n + 15) // 16 * 16


def scratch_floats(d: int, dv: int, width: int) -> list[int]:
    """Sizes of the areas above, in f32."""
    dv = _round16(dv)
    sizes = [GROUP * d * width, 64 * d, 64 * dv, 16 * 64, 64 * 16 + 16, GROUP * width * dv + 16]
    return [_round16(n) for n in [*sizes, GROUP * width, GROUP * width, 16]]


def many(k_name, v_name, masked, with_sinks, width):
    """-> kernel: src q, k, v, mask, sinks -> dst; scratch: the thread's work memory; ints[0..7]: byte offset of each
    area but the first. The size of one thread's memory is that of scratch_floats."""
    from pyggml import simd as v
    from pyggml.dtypes import GGMLType
    from pyggml.kernels.cpu import record
    from pyggml.kernels.cpu.attention import alibi_slope, score_rule
    from pyggml.kernels.cpu.tile import _unpack_floats

    U = v.U
    np = v.np
    words = v.TileWords(width)
    zero, fma_columns, store_columns, load_scaled = (
        words.zero,
        words.fma_columns,
        words.store_columns,
        words.load_scaled,
    )
    unpack_keys = _unpack_floats(GGMLType[k_name])
    turn = v.transposer(v.load_f32)
    _, load_value_part = v.float_loader(v_name)
    v_size = v.FLOAT_BYTES[v_name]
    rule, slope_of = score_rule(), alibi_slope()
    scale_of, bias_of, softcap_of = (record.param_f32(i) for i in range(3))
    head, n_tokens, n_head, n_batch = (record.field("src0.ne", i) for i in range(4))
    n_kv, k_heads = record.field("src1.ne", 1), record.field("src1.ne", 2)
    v_head, v_heads = record.field("src2.ne"), record.field("src2.ne", 2)
    mask2, mask3 = record.field("src3.ne", 2), record.field("src3.ne", 3)
    q_at, k_at, v_at, mask_at = (record.element(f"src{i}") for i in range(4))
    k_row, v_row = record.field("src1.nb", 1), record.field("src2.nb", 1)
    sinks, dst = record.field("src4.data"), record.element("dst")
    work_at, own_bytes = record.field("scratch"), record.field("thread_bytes")
    area = [record.field("ints", i) for i in range(8)]
    keys_at, values_at, scores_at, weights_at, result_at, top_at, sum_at, factor_at = area
    minus_inf = np.float32(-np.inf)
    chunk, group_columns, columns_each = CHUNK, GROUP * width, width
    zero_f = np.float32(0.0)

    @v.device
    def token_head(step, column, kv_head):
        """(token, head) of a column; heads that share keys are neighbours, then tokens."""
        shared = n_head(step) // k_heads(step)
        return column // shared, kv_head * shared + column % shared

    @v.device
    def pack_queries(step, at, first, count, kv_head, i3):
        """Columns first ... of one tile; columns beyond `count` repeat the last."""
        d = head(step)
        for c in range(columns_each):
            t, h = token_head(step, first + min(c, count - 1), kv_head)
            q = q_at(step, 0, t, h, i3)
            out = at + U(4 * c)
            for _ in range(d):
                v.put_f32(out, v.f32_at(q))
                q += U(4)
                out += U(4 * columns_each)

    @v.device
    def visible(step, first_token, last_token, kv_head, first, rows, i3):
        """What the mask does to these keys for these tokens: HIDDEN from all, some are MASKED, or OPEN, all zero."""
        shared = n_head(step) // k_heads(step)
        top, low = v.splat_f32(minus_inf), v.zero_f32()
        high = v.zero_f32()
        for t in range(first_token, last_token + 1):
            for h in range(kv_head * shared, (kv_head + 1) * shared):
                if h > kv_head * shared and mask2(step) == 1:
                    break
                m = mask_at(step, first, t, h % mask2(step), i3 % mask3(step))
                for j in range(0, rows, 16):
                    have = min(rows - j, 16)
                    bias = v.f16_to_f32(v.load_u16_part(m + U(2 * j), have))
                    top = v.maximum(top, v.select_part(bias, minus_inf, have))
                    low = v.maximum(low, v.absolute(bias))
                    high = high + (bias - bias)  # NaN for what is not finite
        if v.hmax(top) == minus_inf:
            return HIDDEN
        if v.hmax(low) == zero_f and v.hsum(high) == zero_f:
            return OPEN
        return MASKED

    @v.device
    def unpack_values(value, stride, rows, n, out):
        """f32[64][dv], rows and elements that do not exist are zero. -> whether an element is not finite; such are
        zero too, because 0 x NaN would reach the tokens from which they are hidden."""
        odd = v.zero_f32()
        for j in range(chunk):
            for i in range(0, n, 16):
                x = v.zero_f32()
                if j < rows:
                    x = load_value_part(value + U(i * v_size), min(n - i, 16))
                wrong = x - x
                odd = odd + wrong
                v.store(out, v.where_equal(wrong, wrong, x, v.zero_f32()))
                out += U(64)
            value += stride
        return v.hsum(odd) != zero_f

    @v.device
    def add_odd(value, stride, rows, n, weights, result, dv):
        """Add weight x value for the elements that unpack_values left out."""
        for j in range(rows):
            for c in range(columns_each):
                p = v.f32_at(weights + U(64 * j + 4 * c))
                if p != zero_f:
                    for i in range(0, n, 16):
                        x = load_value_part(value + U(i * v_size), min(n - i, 16))
                        wrong = x - x
                        at = result + U(4 * (c * dv + i))
                        y = v.load_f32(at)
                        v.store(at, v.where_equal(wrong, wrong, y, y + x * v.splat_f32(p)))
            value += stride

    def kernel(step, ith, nth):
        scale, softcap, max_bias = scale_of(step), softcap_of(step), bias_of(step)
        d, n = head(step), v_head(step)
        dv = (n + 15) // 16 * 16
        shared = n_head(step) // k_heads(step)
        columns = n_tokens(step) * shared
        groups = (columns + group_columns - 1) // group_columns
        queries = work_at(step) + U(ith) * own_bytes(step)
        keys, values = queries + U(keys_at(step)), queries + U(values_at(step))
        scores, weights = queries + U(scores_at(step)), queries + U(weights_at(step))
        results, tops, sums = queries + U(result_at(step)), queries + U(top_at(step)), queries + U(sum_at(step))
        factors = queries + U(factor_at(step))
        work = n_batch(step) * k_heads(step) * groups
        for turns in range((work - ith + nth - 1) // nth):  # in turn: later tiles of a causal prompt see more keys
            w = ith + turns * nth
            first_column, rest = w % groups * group_columns, w // groups
            kv_head, i3 = rest % k_heads(step), rest // k_heads(step)
            kv = kv_head * shared // (n_head(step) // v_heads(step))
            count = min(columns - first_column, group_columns)
            tiles = (count + columns_each - 1) // columns_each
            for g in range(tiles):
                at = first_column + g * columns_each
                pack_queries(
                    step, queries + U(4 * g * columns_each * d), at, min(columns - at, columns_each), kv_head, i3
                )
            for i in range(0, tiles * columns_each * dv, 16):
                v.store(results + U(4 * i), v.zero_f32())
            for i in range(tiles * columns_each):
                v.put_f32(tops + U(4 * i), minus_inf)
                v.put_f32(sums + U(4 * i), zero_f)
            first_token = first_column // shared
            last_token = (first_column + count - 1) // shared
            for first in range(0, n_kv(step), chunk):
                rows = min(n_kv(step) - first, chunk)
                seen = OPEN
                if masked:
                    seen = visible(step, first_token, last_token, kv_head, first, rows, i3)
                    if seen == HIDDEN:
                        continue
                k = k_at(step, 0, first, kv_head, i3)
                for j in range(0, rows, 16):
                    stride = U(k_row(step))
                    unpack_keys(k + stride * U(j), stride, min(rows - j, 16) - 1, d, keys + U(4 * j * d))
                value = v_at(step, 0, first, kv, i3)
                odd = unpack_values(value, U(v_row(step)), rows, n, values)
                for g in range(tiles):
                    query = queries + U(4 * g * columns_each * d)
                    for j in range(0, rows, 16):
                        acc = zero()
                        y = query
                        x = keys + U(4 * j * d)
                        for _ in range(d):
                            acc = fma_columns(acc, v.load_f32(x), y)
                            x += U(64)
                            y += U(4 * columns_each)
                        store_columns(acc, scores + U(4 * j), U(4 * chunk), 16, columns_each)
                    for c in range(columns_each):
                        column = min(first_column + g * columns_each + c, columns - 1)
                        t, h = token_head(step, column, kv_head)
                        row = scores + U(4 * chunk * c)
                        at = U(4 * (g * columns_each + c))
                        old = v.f32_at(tops + at)
                        highest = v.splat_f32(old)
                        slope = v.splat_f32(slope_of(h, n_head(step), max_bias))
                        for j in range(0, chunk, 16):
                            have = min(rows - j, 16)
                            s = v.splat_f32(minus_inf)
                            if have > 0:
                                s = rule(v.load_f32(row + U(4 * j)), scale, softcap)
                                if seen == MASKED:
                                    m = mask_at(step, first + j, t, h % mask2(step), i3 % mask3(step))
                                    bias = v.f16_to_f32(v.load_u16_part(m, have))
                                    s = v.where_less(v.splat_f32(minus_inf), bias, v.fma(slope, bias, s), bias)
                                if have < 16:
                                    s = v.select_part(s, minus_inf, have)
                                highest = v.maximum(s, highest)
                            v.store(row + U(4 * j), s)
                        top = v.hmax(highest)
                        factor = np.float32(1.0)
                        total = zero_f
                        if top == minus_inf:
                            for j in range(0, chunk, 16):
                                v.store(row + U(4 * j), v.zero_f32())
                        else:
                            sums16 = v.zero_f32()
                            for j in range(0, chunk, 16):
                                p = v.exp(v.load_f32(row + U(4 * j)) - v.splat_f32(top))
                                v.store(row + U(4 * j), p)
                                sums16 = sums16 + p
                            total = v.hsum(sums16)
                            factor = v.lane(v.exp(v.splat_f32(old - top)), 0)
                        v.put_f32(tops + at, top)
                        v.put_f32(sums + at, v.f32_at(sums + at) * factor + total)
                        v.put_f32(factors + U(4 * c), factor)
                    for j in range(0, chunk, 16):
                        turn(weights + U(64 * j), scores + U(4 * j), U(4 * chunk), columns_each - 1)
                    result = results + U(4 * g * columns_each * dv)
                    for i in range(0, dv, 16):
                        acc = load_scaled(result + U(4 * i), U(4 * dv), factors)
                        x = values + U(4 * i)
                        y = weights
                        for _ in range(chunk):
                            acc = fma_columns(acc, v.load_f32(x), y)
                            x += U(4 * dv)
                            y += U(64)
                        store_columns(acc, result + U(4 * i), U(4 * dv), 16, columns_each)
                    if odd:
                        add_odd(value, U(v_row(step)), rows, n, weights, result, dv)
            for c in range(count):
                t, h = token_head(step, first_column + c, kv_head)
                total = v.f32_at(sums + U(4 * c))
                factor = np.float32(1.0)
                if with_sinks:
                    top, sink = v.f32_at(tops + U(4 * c)), v.f32_at(sinks(step) + U(4 * h))
                    new = max(top, sink)
                    factor = v.lane(v.exp(v.splat_f32(top - new)), 0)
                    total = total * factor + v.lane(v.exp(v.splat_f32(sink - new)), 0)
                if total != zero_f:
                    factor = factor / total
                out = dst(step, 0, h, t, i3)
                for i in range(0, n, 16):
                    x = v.load_f32(results + U(4 * (c * dv + i))) * v.splat_f32(factor)
                    v.store_part(out + U(4 * i), x, min(n - i, 16))

    return kernel
