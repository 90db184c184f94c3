"""FLASH_ATTN_EXT: softmax(q k^T * scale + mask) v without the matrix of scores in memory.

Owns both ways: `split_kv`, for a few tokens, splits each head's keys in chunks of CHUNK that any thread may take, and
`combine` joins the chunks; `tiled`, in attention_tile.py, meets tiles of tokens with tiles of keys. The chunks depend
on the shapes alone, never on the number of threads. How a type's bytes are unpacked is attention_rows.py's.

Heads of queries that share both their keys and their values are a block; a block's columns are its heads for each
token. Partial result of a column and a chunk: f32 maximum and f32 sum of exp(score - maximum), its head, and the weighted
sum of the values, not yet divided. A sum of 0 says that every key is hidden: of such chunks, of which streams that differ
in length have many, only the head is touched. The heads lie together, [batch][block][column][chunk], then the sums.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pyggml import jit
from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu import attention_rows, attention_tile
from pyggml.kernels.cpu.copy import put
from pyggml.kernels.cpu.formats import CONVERTIBLE, DEQUANTIZABLE
from pyggml.kernels.cpu.layout import refuse_types
from pyggml.ops import is_one_by_one

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

CHUNK = 64
HEAD = 8
SCORES = 128
QUERIES = SCORES + 4 * CHUNK * attention_rows.MAX_COLUMNS
"""Where a thread's work memory has the scores of some columns, and the queries of all; before them a CALL record."""

MIN_TILE_TOKENS = 4
FEW_COLUMNS = 24
FEW_PIECES = 2
MANY_COLUMNS = 64
MANY_KEYS = 1024
"""From so many keys on, up to so many columns of a block, or up to so many more where tiles make too few pieces of work for
several threads, keys are split."""
WIDTH = {"vnni": 12, "v4": 12, "v3": 6, "v2": 3, "generic": 4}
"""Queries in a register tile."""


def why_not(node: Tensor) -> str | None:
    q, k, v = node.src[:3]
    assert q is not None and k is not None and v is not None
    for t in (k, v):
        if t.nb[0] != SIZES[t.type].type_size and t.ne[0] != 1:
            return "FLASH_ATTN_EXT: rows of K or V are not contiguous"
    if q.nb[0] != 4 and q.ne[0] != 1:
        return "FLASH_ATTN_EXT: rows of Q are not contiguous"
    if not node.is_contiguous:
        return "FLASH_ATTN_EXT: the result is not contiguous"
    if 0 in k.ne:
        return "FLASH_ATTN_EXT: there are no keys"
    return refuse_types(DEQUANTIZABLE, k, v)


def lower(builder: Builder, node: Tensor) -> None:
    q, k, v, mask, sinks = (*node.src, None, None)[:5]
    assert q is not None and k is not None and v is not None
    k, v = _readable(builder, k), _readable(builder, v)
    blocks = math.lcm(k.ne[2], v.ne[2])
    shared = q.ne[2] // blocks
    columns = q.ne[1] * shared
    width = WIDTH[jit.level()]
    pieces = blocks * -(
        -columns // (attention_tile.GROUP * width)
    )  # of one stream: each has the bits that it has alone
    few = columns <= FEW_COLUMNS or (columns <= MANY_COLUMNS and pieces <= FEW_PIECES)
    few = few and k.ne[1] >= MANY_KEYS
    if q.ne[1] >= MIN_TILE_TOKENS and not few and not is_one_by_one(node):
        offsets, size = attention_tile.work_memory(q.ne[0], v.ne[0], width)
        builder.step(
            Spec("attention_tile", "tiled", (width,)), node, [q, k, v, mask, sinks],
            args=attention_tile.TileArgs(shared, blocks, *offsets),
            writes=[builder.thread_scratch(size)],
            calls=[attention_rows.unpack_spec(k.type), attention_rows.unpack_spec(v.type)],
        )  # fmt: skip
        return
    chunks = -(-k.ne[1] // CHUNK)
    partial = (v.ne[0] * 4 + 63) // 64 * 64
    at_once = attention_rows.columns_at_once(columns, k.type, v.type)
    padded = -(-columns // at_once) * at_once
    count = q.ne[3] * blocks * padded * chunks
    heads = (count * HEAD + 63) // 64 * 64
    results = builder.scratch(heads + count * partial)
    work = builder.thread_scratch(QUERIES + blocks * padded * (q.ne[0] + 15) // 16 * 64)
    args = SplitArgs(chunks, partial, shared, blocks, padded, at_once, heads)
    calls = [attention_rows.scores_spec(k.type, at_once), attention_rows.weigh_spec(v.type, at_once)]
    builder.step(Spec("attention", "split_kv"), None, [q, k, v, mask], args=args, writes=[results, work], calls=calls)
    builder.step(Spec("attention", "combine"), node, [q, sinks], args=args, reads=[results])


def _readable(builder: Builder, t: Tensor) -> Tensor:
    """`t`, or, of a type that attention_rows.py does not read, the values that it stands for."""
    if t.type in CONVERTIBLE:
        return t
    values = builder.work_tensor(GGMLType.F32, t.ne)
    put(builder, values, t)
    return values


class SplitArgs(NamedTuple):
    """chunks: into how many the keys are cut. partial: bytes of the sum of a partial result. shared: heads a block. blocks: of
    heads. padded: columns of a block, with some that repeat the last one. at_once: columns that share a row. heads: bytes
    of the partial results' heads."""

    chunks: int
    partial: int
    shared: int
    blocks: int
    padded: int
    at_once: int
    heads: int


def split_kv():
    """-> kernel: src q, k, v, mask -> partial results. Takes SplitArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import attention_scores, record, step_args

    U = v.U
    np = v.np
    (score, add_mask, weight), slope_of = attention_scores.score_ops(), attention_scores.alibi_slope()
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
    k_row, v_row, mask_data = record.field("src1.nb", 1), record.field("src2.nb", 1), record.field("src3.data")
    q_row = record.field("src0.nb", 2)
    chunks_of, partial_of, shared_of, blocks_of, padded_of, at_once_of, heads_of = step_args.readers(SplitArgs)
    results, work_at, own_bytes = record.field("scratch"), record.field("scratch", 1), record.field("thread_bytes")
    multiply, weigh = record.field("calls"), record.field("calls", 1)
    minus_inf = np.float32(-np.inf)
    chunk, head_size, scores_at, queries_at, row_bytes = CHUNK, U(HEAD), U(SCORES), U(QUERIES), U(4 * CHUNK)
    (
        call_rows,
        call_stride,
        call_count,
        call_n,
        call_columns,
        call_apart,
        call_out,
        call_out_apart,
        call_zeros,
        call_all,
    ) = (U(attention_rows.CALL.fields[name][1]) for name in attention_rows.CALL.names[:10])
    call_ahead = U(attention_rows.CALL.fields["ahead"][1])

    @v.device
    def pack_queries(step, to, size, i3):
        """All queries of a batch: f32 [block][column][size / 4], zeros behind the head."""
        d, shared = head(step), shared_of(step)
        columns = n_tokens(step) * shared
        for block in range(blocks_of(step)):
            for c in range(padded_of(step)):
                column = min(c, columns - 1)
                q = q_at(step, 0, column // shared, block * shared + column % shared, i3)
                for i in range(0, d, 16):
                    v.store(to + U(4 * i), v.load_f32_part(q + U(4 * i), min(16, d - i)))
                to += size

    @v.device
    def bias_row(step, first, column, block, i3):
        """Address of the mask of a column from key `first` on."""
        shared = shared_of(step)
        h = block * shared + column % shared
        return mask_at(step, first, column // shared, h % mask2(step), i3 % mask3(step))

    @v.device
    def hidden(step, first, rows, columns, count, block, i3):
        """Whether the mask hides these keys from `count` columns: then they may hold anything."""
        for column in range(columns, min(columns + count, n_tokens(step) * shared_of(step))):
            m = bias_row(step, first, column, block, i3)
            for j in range(0, rows, 16):
                have = min(rows - j, 16)
                part = v.select_part(v.f16_to_f32(v.load_u16_part(m + U(2 * j), have)), minus_inf, have)
                if v.equal_bits(part, v.splat_f32(minus_inf)) != 65535:  # a NaN hides nothing
                    return False
            if mask2(step) == 1 and n_tokens(step) == 1:
                break
        return True

    @v.device
    def next_keys(step, c, i3, chunks, ask):
        """Where those keys begin that are probably looked at after chunk c: the next chunk's or, where that is hidden,
        the next stream's."""
        first = (c + 1) * chunk
        if c + 1 < chunks and not (ask and hidden(step, first, min(n_kv(step) - first, chunk), 0, 1, 0, i3)):
            return k_at(step, 0, first, 0, i3)
        return k_at(step, 0, 0, 0, i3 + 1)

    def kernel(step, ith, nth, thread):
        scale, softcap, max_bias = scale_of(step), softcap_of(step), bias_of(step)
        chunks, shared, blocks, padded, at_once = (
            chunks_of(step), shared_of(step), blocks_of(step), padded_of(step), at_once_of(step),
        )  # fmt: skip
        columns, partial, masked = n_tokens(step) * shared, U(partial_of(step)), mask_data(step) != U(0)
        call = work_at(step) + U(thread * own_bytes(step))
        scores, queries, query_bytes = call + scores_at, call + queries_at, U((head(step) + 15) // 16 * 64)
        in_place = n_tokens(step) == 1 and padded == shared and head(step) % 16 == 0
        if in_place:
            query_bytes = U(q_row(step))
        one_mask, asked, unseen, packed = mask2(step) == 1 and n_tokens(step) == 1, -1, False, -1
        work = n_batch(step) * chunks * blocks
        for w in range(work * ith // nth, work * (ith + 1) // nth):
            # heads of one cell are neighbours in a cache
            block, rest = w % blocks, w // blocks
            c, i3 = rest % chunks, rest // chunks
            first = c * chunk
            rows = min(n_kv(step) - first, chunk)
            for turns in range(padded // at_once):
                g = turns * at_once
                place = U(((i3 * blocks + block) * padded + g) * chunks + c)
                to = results(step) + place * head_size
                if masked and not (one_mask and asked == rest):
                    unseen, asked = hidden(step, first, rows, g, at_once, block, i3), rest
                if masked and unseen:
                    for _ in range(at_once):
                        v.put_f32(to, minus_inf)
                        v.put_f32(to + U(4), np.float32(0.0))
                        to += U(chunks) * head_size
                    continue
                if in_place:
                    queries = q_at(step, 0, 0, block * shared, i3) - U(block * padded) * query_bytes
                elif i3 != packed:
                    pack_queries(step, queries, query_bytes, i3)
                    packed = i3
                keys = k_at(step, 0, first, block // (blocks // k_heads(step)), i3)
                values = v_at(step, 0, first, block // (blocks // v_heads(step)), i3)
                v.put_i64(call + call_rows, keys)
                v.put_i64(call + call_ahead, values - keys)  # all of what comes next, as long as rows are alike
                v.put_i64(call + call_stride, k_row(step))
                v.put_i64(call + call_count, rows)
                v.put_i64(call + call_n, head(step))
                v.put_i64(call + call_columns, queries + U(block * padded + g) * query_bytes)
                v.put_i64(call + call_apart, query_bytes)
                v.put_i64(call + call_out, scores)
                v.put_i64(call + call_out_apart, row_bytes)
                v.call_kernel(multiply(step), call, 0, 1)
                zeros, zeros_for_all = 0, -1
                row = scores
                for i in range(at_once):
                    column = min(g + i, columns - 1)
                    m = mask_data(step)
                    slope = v.splat_f32(np.float32(1.0))
                    if masked:
                        m = bias_row(step, first, column, block, i3)
                        slope = v.splat_f32(slope_of(block * shared + column % shared, n_head(step), max_bias))
                    highest = v.splat_f32(minus_inf)
                    for j in range(0, rows, 16):
                        have = min(rows - j, 16)
                        s = score(v.load_f32(row + U(4 * j)), scale, softcap)
                        if masked:
                            s = add_mask(s, v.f16_to_f32(v.load_u16_part(m + U(2 * j), have)), slope)
                        s = v.select_part(s, minus_inf, have)
                        v.store(row + U(4 * j), s)
                        highest = v.maximum(s, highest)
                    top = v.hmax(highest)
                    none = 0
                    total = v.zero_f32()
                    for j in range(0, rows, 16):
                        p = weight(v.load_f32(row + U(4 * j)), top)
                        v.store(row + U(4 * j), p)
                        none |= v.equal_bits(p, v.zero_f32()) << j
                        total = total + p
                    zeros |= none
                    zeros_for_all &= none
                    v.put_f32(to, top)
                    v.put_f32(to + U(4), v.hsum(total))
                    to += U(chunks) * head_size
                    row += row_bytes
                following = keys
                if turns == padded // at_once - 1:
                    if block + 1 < blocks:
                        following = k_at(step, 0, first, (block + 1) // (blocks // k_heads(step)), i3)
                    else:
                        following = next_keys(step, c, i3, chunks, masked and one_mask)
                v.put_i64(call + call_rows, values)
                v.put_i64(call + call_ahead, following - values)
                v.put_i64(call + call_stride, v_row(step))
                v.put_i64(call + call_n, v_head(step))
                v.put_i64(call + call_columns, scores)
                v.put_i64(call + call_apart, row_bytes)
                v.put_i64(call + call_out, results(step) + U(heads_of(step)) + place * partial)
                v.put_i64(call + call_out_apart, U(chunks) * partial)
                v.put_i64(call + call_zeros, zeros)
                v.put_i64(call + call_all, zeros_for_all)
                v.call_kernel(weigh(step), call, 0, 1)

    return kernel


def combine():
    """-> kernel: partial results -> dst; src0 = q for its shape, src1 = sinks or nothing. Takes SplitArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import attention_scores, record, step_args

    U = v.U
    np = v.np
    v_head, n_head, n_tokens, n_batch = (record.field("dst.ne", i) for i in range(4))
    chunks_of, partial_of, shared_of, blocks_of, padded_of, _, heads_of = step_args.readers(SplitArgs)
    results, dst = record.field("scratch"), record.element("dst")
    sinks = record.field("src1.data")
    minus_inf, masked_score = np.float32(-np.inf), np.float32(attention_scores.MASKED_SCORE)
    head_size = U(HEAD)

    def kernel(step, ith, nth, thread):
        n, heads, chunks, shared = v_head(step), n_head(step), chunks_of(step), shared_of(step)
        size = U(partial_of(step))
        work = n_batch(step) * n_tokens(step) * heads
        for w in range(work * ith // nth, work * (ith + 1) // nth):
            h, rest = w % heads, w // heads
            t, i3 = rest % n_tokens(step), rest // n_tokens(step)
            column = (i3 * blocks_of(step) + h // shared) * padded_of(step) + t * shared + h % shared
            heads_at = results(step) + U(column * chunks) * head_size
            first = results(step) + U(heads_of(step)) + U(column * chunks) * size
            top = minus_inf
            for c in range(chunks):
                top = max(top, v.f32_at(heads_at + U(c) * head_size))
            total = np.float32(0.0)
            if sinks(step) != U(0):
                sink = v.f32_at(sinks(step) + U(4 * h))
                top = max(top, sink)
                total = v.lane(v.exp(v.splat_f32(sink - top)), 0)
            for c in range(chunks):
                part = heads_at + U(c) * head_size
                m = v.f32_at(part)
                if v.f32_at(part + U(4)) != np.float32(0.0):
                    weight = v.lane(v.exp(v.splat_f32(m - top)), 0)
                    total += weight * v.f32_at(part + U(4))
                    v.put_f32(part, weight)
            inverse = np.float32(0.0)
            if top == masked_score:
                inverse = np.float32(np.nan)
            elif total != np.float32(0.0):
                inverse = np.float32(1.0) / total
            out = dst(step, 0, h, t, i3)
            for i in range(0, n, 16):
                acc = v.zero_f32()
                for c in range(chunks):
                    part = heads_at + U(c) * head_size
                    if v.f32_at(part + U(4)) != np.float32(0.0):
                        acc = v.fma(v.load_f32(first + U(c) * size + U(4 * i)), v.splat_f32(v.f32_at(part)), acc)
                v.store_part(out + U(4 * i), acc * v.splat_f32(inverse), min(n - i, 16))

    return kernel
