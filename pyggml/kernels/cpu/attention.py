"""FLASH_ATTN_EXT: softmax(q k^T * scale + mask) v without the matrix of scores in memory.

Owns both ways: `few`, for a few tokens, splits each head's keys in chunks of CHUNK that any thread may take, and
`combine` joins the chunks; `many`, in attention_tile.py, meets tiles of tokens with tiles of keys. The chunks depend
on the shapes alone, never on the number of threads.

Partial result of a chunk: f32 maximum, f32 sum of exp(score - maximum), 56 bytes unused, then the weighted sum of
the values, not yet divided.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pyggml import jit
from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu import attention_tile

if TYPE_CHECKING:
    from pyggml.backend.cpu import Builder
    from pyggml.tensor import Tensor

T = GGMLType
TYPES = (T.F16, T.F32, T.BF16)
CHUNK = 64
HEADER = 64
MIN_TILE_TOKENS = 4
WIDTH = {"vnni": 12, "v4": 12, "v3": 6, "v2": 3, "generic": 4}
"""Queries in a register tile."""


def why_not(node: Tensor) -> str | None:
    q, k, v = node.src[:3]
    assert q is not None and k is not None and v is not None
    for t in (k, v):
        if t.type not in TYPES:
            return f"FLASH_ATTN_EXT over {t.type.name}"
        if t.nb[0] != SIZES[t.type].type_size and t.ne[0] != 1:
            return "FLASH_ATTN_EXT over rows that are not dense"
    if q.nb[0] != 4 and q.ne[0] != 1:
        return "FLASH_ATTN_EXT of queries that are not dense"
    if not node.is_contiguous:
        return "FLASH_ATTN_EXT with a result that is not contiguous"
    if 0 in k.ne:
        return "FLASH_ATTN_EXT over no keys"
    return None


def lower(builder: Builder, node: Tensor) -> None:
    q, k, v, mask, sinks = (*node.src, None, None)[:5]
    assert q is not None and k is not None and v is not None
    if q.ne[1] >= MIN_TILE_TOKENS:
        width = WIDTH[jit.level()]
        sizes = attention_tile.scratch_floats(q.ne[0], v.ne[0], width)
        work = builder.thread_scratch(4 * sum(sizes))
        masks = (int(mask is not None), int(sinks is not None))
        tiles = Spec("attention_tile", "many", (k.type.name, v.type.name, *masks, width))
        offsets = [4 * n for n in itertools.accumulate(sizes[:-1])]
        builder.step(tiles, node, [q, k, v, mask, sinks], ints=offsets, writes=[work])
        return
    chunks = -(-k.ne[1] // CHUNK)
    partial = HEADER + (v.ne[0] * 4 + 63) // 64 * 64
    results = builder.scratch(q.ne[1] * q.ne[2] * q.ne[3] * chunks * partial)
    scores = builder.thread_scratch(4 * CHUNK)
    spec = Spec("attention", "few", (k.type.name, v.type.name, int(mask is not None)))
    builder.step(spec, None, [q, k, v, mask], ints=(chunks, partial), writes=[results, scores])
    builder.step(
        Spec("attention", "combine", (int(sinks is not None),)),
        node,
        [q, sinks],
        ints=(chunks, partial),
        reads=[results],
    )


def alibi_slope():
    """-> slope(head, n_head, max_bias): the factor of a head's mask (ops.cpp: ggml_compute_forward_soft_max_f32)."""
    from pyggml import simd as v

    np = v.np

    @v.device
    def slope(head, n_head, max_bias):
        if max_bias <= np.float32(0.0):
            return np.float32(1.0)
        floor = 1
        while floor * 2 <= n_head:
            floor *= 2
        if head < floor:
            return v.lane(v.exp2(v.splat_f32(-max_bias / np.float32(floor) * np.float32(head + 1))), 0)
        return v.lane(v.exp2(v.splat_f32(-max_bias / np.float32(2 * floor) * np.float32(2 * (head - floor) + 1))), 0)

    return slope


def score_rule():
    """-> rule(s, scale, softcap): what is done to 16 products of q and k before the mask is added."""
    from pyggml import simd as v

    np = v.np

    @v.device
    def rule(s, scale, softcap):
        if softcap == np.float32(0.0):
            return s * v.splat_f32(scale)
        return v.splat_f32(softcap) * v.tanh(s * v.splat_f32(scale / softcap))

    return rule


def few(k_name, v_name, masked):
    """-> kernel: src q, k, v, mask -> partial results; ints: chunks, bytes of a partial result."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    U = v.U
    np = v.np
    keys, values = v.RowWords(k_name), v.RowWords(v_name)
    multiply, multiply_part, zero, sums = keys.multiply, keys.multiply_part, keys.zero, keys.sums
    add_row, zero4, store4 = values.add_row, values.zero4, values.store4
    _, load_value_part = v.float_loader(v_name)
    k_size, v_size = v.FLOAT_BYTES[k_name], v.FLOAT_BYTES[v_name]
    rule, slope_of = score_rule(), alibi_slope()
    scale_of, bias_of, softcap_of = (record.param_f32(i) for i in range(3))
    head, n_tokens, n_head, n_batch = (record.field("src0.ne", i) for i in range(4))
    n_kv, k_heads, v_head, v_heads = (
        record.field("src1.ne", 1),
        record.field("src1.ne", 2),
        record.field("src2.ne"),
        record.field("src2.ne", 2),
    )
    mask2, mask3 = record.field("src3.ne", 2), record.field("src3.ne", 3)
    q_at, k_at, v_at, mask_at = (record.element(f"src{i}") for i in range(4))
    k_row, v_row = record.field("src1.nb", 1), record.field("src2.nb", 1)
    chunks_of, partial_of = record.field("ints"), record.field("ints", 1)
    results, scores_of = record.field("scratch"), record.field("scratch", 1)
    own_bytes = record.field("thread_bytes")
    minus_inf = np.float32(-np.inf)
    chunk, header = CHUNK, U(HEADER)
    at_once = keys.count

    @v.device
    def score16(query, n, keys, stride, last, out):
        """Products of one query with 16 keys, of which those beyond `last` repeat it; by way of memory at `out`."""
        for first in range(0, 16, at_once):
            acc = zero()
            q = query
            k = keys + stride * U(min(first, last))
            rest = max(last - first, 0)
            for _ in range(n >> 4):
                acc = multiply(acc, k, stride, rest, v.load_f32(q))
                q += U(64)
                k += U(16 * k_size)
            if n & 15:
                acc = multiply_part(acc, k, stride, rest, v.load_f32_part(q, n & 15), n & 15)
            v.store(out + U(4 * first), sums(acc))
        return v.load_f32(out)

    @v.device
    def weigh(scores, value, stride, n, rows, out):
        """out[n] = sum over rows of score x value row; rows with score 0 are not looked at."""
        done = 0
        while done + 64 <= n:
            even = zero4()
            odd = zero4()
            row = value
            for j in range(0, rows, 2):
                p0 = v.f32_at(scores + U(4 * j))
                if p0 != np.float32(0.0):
                    even = add_row(even, row, p0)
                row += stride
                if j + 1 < rows:
                    p1 = v.f32_at(scores + U(4 * j + 4))
                    if p1 != np.float32(0.0):
                        odd = add_row(odd, row, p1)
                    row += stride
            store4(out, even, odd)
            done += 64
            value += U(64 * v_size)
            out += U(256)
        while done < n:
            left = min(n - done, 16)
            acc = v.zero_f32()
            row = value
            for j in range(rows):
                p = v.f32_at(scores + U(4 * j))
                if p != np.float32(0.0):
                    acc = v.fma(load_value_part(row, left), v.splat_f32(p), acc)
                row += stride
            v.store_part(out, acc, left)
            done += 16
            value += U(16 * v_size)
            out += U(64)

    def kernel(step, ith, nth):
        scale, softcap, max_bias = scale_of(step), softcap_of(step), bias_of(step)
        heads, tokens = n_head(step), n_tokens(step)
        chunks = chunks_of(step)
        group = heads // k_heads(step)
        scores = scores_of(step) + U(ith * own_bytes(step))
        work = n_batch(step) * tokens * heads * chunks
        for w in range(work * ith // nth, work * (ith + 1) // nth):
            # heads that share keys are neighbours, so that the chunk stays in cache
            in_group, rest = w % group, w // group
            c, rest = rest % chunks, rest // chunks
            kv_head, rest = rest % k_heads(step), rest // k_heads(step)
            t, i3 = rest % tokens, rest // tokens
            h = kv_head * group + in_group
            out = results(step) + U((((i3 * tokens + t) * heads + h) * chunks + c) * partial_of(step))
            first = c * chunk
            rows = min(n_kv(step) - first, chunk)
            q = q_at(step, 0, t, h, i3)
            k = k_at(step, 0, first, kv_head, i3)
            top = minus_inf
            if masked:
                m = mask_at(step, first, t, h % mask2(step), i3 % mask3(step))
                slope = v.splat_f32(slope_of(h, heads, max_bias))
            for j in range(0, rows, 16):
                have = min(rows - j, 16)
                if masked:
                    # nothing to see here: such cells may hold anything
                    bias = v.select_part(v.f16_to_f32(v.load_u16_part(m, have)), minus_inf, have)
                    m += U(32)
                    if v.hmax(bias) == minus_inf:
                        v.store(scores + U(4 * j), bias)
                        continue
                    s = rule(
                        score16(q, head(step), k + U(j * k_row(step)), U(k_row(step)), have - 1, scores + U(4 * j)),
                        scale,
                        softcap,
                    )
                    # where the mask is -inf the product does not count, even if it is NaN
                    s = v.where_less(v.splat_f32(minus_inf), bias, v.fma(slope, bias, s), bias)
                else:
                    s = rule(
                        score16(q, head(step), k + U(j * k_row(step)), U(k_row(step)), have - 1, scores + U(4 * j)),
                        scale,
                        softcap,
                    )
                    s = v.select_part(s, minus_inf, have)
                v.store(scores + U(4 * j), s)
                top = max(top, v.hmax(s))
            v.put_f32(out, top)
            total = np.float32(0.0)
            if top != minus_inf:
                for j in range(0, rows, 16):
                    p = v.exp(v.load_f32(scores + U(4 * j)) - v.splat_f32(top))
                    v.store(scores + U(4 * j), p)
                    total += v.hsum(p)
                kv = h // (heads // v_heads(step))
                weigh(scores, v_at(step, 0, first, kv, i3), U(v_row(step)), v_head(step), rows, out + header)
            v.put_f32(out + U(4), total)

    return kernel


def combine(with_sinks):
    """-> kernel: partial results -> dst; src0 = q for its shape, src1 = sinks; ints as for `few`."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    U = v.U
    np = v.np
    v_head, n_head, n_tokens, n_batch = (record.field("dst.ne", i) for i in range(4))
    chunks_of, partial_of = record.field("ints"), record.field("ints", 1)
    results, dst = record.field("scratch"), record.element("dst")
    sinks = record.field("src1.data")
    minus_inf = np.float32(-np.inf)
    header = U(HEADER)

    def kernel(step, ith, nth):
        n, heads, chunks = v_head(step), n_head(step), chunks_of(step)
        size = U(partial_of(step))
        work = n_batch(step) * n_tokens(step) * heads
        for w in range(work * ith // nth, work * (ith + 1) // nth):
            h, rest = w % heads, w // heads
            t, i3 = rest % n_tokens(step), rest // n_tokens(step)
            first = results(step) + U(w * chunks) * size
            top = minus_inf
            for c in range(chunks):
                top = max(top, v.f32_at(first + U(c) * size))
            total = np.float32(0.0)
            if with_sinks:
                sink = v.f32_at(sinks(step) + U(4 * h))
                top = max(top, sink)
                total = v.lane(v.exp(v.splat_f32(sink - top)), 0)
            for c in range(chunks):
                part = first + U(c) * size
                m = v.f32_at(part)
                if m != minus_inf:
                    weight = v.lane(v.exp(v.splat_f32(m - top)), 0)
                    total += weight * v.f32_at(part + U(4))
                    v.put_f32(part, weight)
                else:
                    v.put_f32(part, np.float32(0.0))
            inverse = np.float32(0.0)
            if total != np.float32(0.0):
                inverse = np.float32(1.0) / total
            out = dst(step, 0, h, t, i3)
            for i in range(0, n, 16):
                acc = v.zero_f32()
                for c in range(chunks):
                    part = first + U(c) * size
                    weight = v.f32_at(part)
                    if weight != np.float32(0.0):
                        acc = v.fma(v.load_f32(part + header + U(4 * i)), v.splat_f32(weight), acc)
                v.store_part(out + U(4 * i), acc * v.splat_f32(inverse), min(n - i, 16))

    return kernel
