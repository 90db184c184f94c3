"""F32 rows -> 8-bit integers with a scale a block of 32, laid out as the integer products want them.

Owns the two layouts and the kernels that fill them; knows no weight type. q = round(x / d), d = max|x| / 127, as
quantize_row_q8_0 (ggml-quants.c), but d stays F32. A block with an infinity or a NaN gets d = NaN.

Planes, for matrix-vector products: a row of `nb` blocks, padded with zeros to `padded(nb)` blocks, is
  q i8[32 nb] | z i32[8 nb]: -128 x each sum of four q | d f32[nb] | s f32[nb]: d x sum(q)
Panels, for matrix-matrix products: `width` rows (tokens) side by side, block after block
  d f32[width] | s f32[width] | n i32[width]: -sum(q) | q i8[8][width][4]
or, with `halves`, for weights whose scales change every 16 values
  d f32[width] | i32[width]: -sum of the first 16 q | i32[width]: of the other 16 | q i8[8][width][4]
Which row of src0 is which token of a panel, shapes say, or a table of experts.py.
"""

from __future__ import annotations

from typing import NamedTuple

from pyggml.jit import inline

BLOCK = 32
PLANE_BYTES = 32 + 32 + 4 + 4  # a block in planes
PANEL_BYTES = 3 * 4 + 32  # a block of one token in a panel
RUN = 64  # floats of each token that are put side by side in one go
TAILS = (4, 8)
"""Tokens of the narrower tiles that meet a panel which is not full, where a full one has more."""


def padded(nb: int) -> int:
    """Blocks in a plane: whole groups of 8 wherever a group starts."""
    return (nb + 7 + 7) // 8 * 8


def _quantize():
    """-> quantize(x, count): (q of 2 blocks i8 x 64, d0, d1, sums of 4 i32 x 16); count = elements that exist, <= 64."""
    from pyggml import simd as v

    U = v.U
    np = v.np

    @v.device
    def half(x, count):
        """One block: scale, and its 32 values over the scale as two i32 x 16."""
        a = v.load_f32_part(x, count)
        b = v.load_f32_part(x + U(64), count - 16)
        largest = v.hmax(v.maximum(v.absolute(a), v.absolute(b)))
        d = largest / np.float32(127.0)
        odd = (a - a) + (b - b)  # zeros, or NaNs where anything is not finite
        if v.nan_bits(odd, odd) != 0:
            d = np.float32(np.nan)
        inverse = np.float32(0.0)
        if largest > np.float32(0.0):
            inverse = np.float32(127.0) / largest
        by = v.splat_f32(inverse)
        qa = v.truncate_to_i32(v.round_even(a * by))
        qb = v.truncate_to_i32(v.round_even(b * by))
        return d, v.join(v.i32_to_i8(qa), v.i32_to_i8(qb))

    hundred = v.splat_like("u8", 64)

    @v.device
    def quantize(x, count):
        d0, q0 = half(x, count)
        d1, q1 = half(x + U(128), count - 32)
        q = v.join(q0, q1)
        return q, d0, d1, v.dot_u8i8(v.zero_i32(), hundred(1), q)

    return quantize


class PlaneArgs(NamedTuple):
    """blocks: of a row. padded: those of its planes. row_bytes: from one row's planes to the next's."""

    blocks: int
    padded: int
    row_bytes: int


def planes():
    """-> kernel: src0 rows to planes. Takes PlaneArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    np = v.np
    quantize = _quantize()
    rows, row, ne0 = record.rows("src0"), record.row("src0", "src0"), record.field("src0.ne")
    blocks, all_blocks, stride = step_args.readers(PlaneArgs)
    out = record.field("scratch")
    lower, upper = v.shuffler([*range(8)]), v.shuffler([*range(8, 16)])

    def kernel(step, ith, nth, thread):
        n, nb, pad = ne0(step), blocks(step), all_blocks(step)
        count = rows(step)
        for r in range(count * ith // nth, count * (ith + 1) // nth):
            x = row(step, r)
            q = out(step) + U(r * stride(step))
            z = q + U(32 * pad)
            d = z + U(32 * pad)
            s = d + U(4 * pad)
            for b in range(0, nb, 2):
                left = min(n - b * 32, 64)
                values, d0, d1, sums = quantize(x, left)
                v.store(q, values)
                v.store(z, sums * v.splat_i32(np.int32(-128)))
                v.put_f32(d, d0)
                v.put_f32(d + U(4), d1)
                v.put_f32(s, d0 * np.float32(v.hsum(lower(sums))))
                v.put_f32(s + U(4), d1 * np.float32(v.hsum(upper(sums))))
                x += U(256)
                q += U(64)
                z += U(64)
                d += U(8)
                s += U(8)
            for _ in range((nb + 1) // 2 * 2, pad, 2):  # no weight meets these, but 0 x garbage could be NaN
                v.store(q, v.as_i8(hundred_zero()))
                v.store(z, v.zero_i32())
                v.put_i64(d, 0)
                v.put_i64(s, 0)
                q += U(64)
                z += U(64)
                d += U(8)
                s += U(8)

    hundred_zero = v.zeros("u8", 64)
    return kernel


def slots(width: int, tokens: int) -> int:
    """How many of a panel's `width` tokens products read where it has so many."""
    return next((count for count in TAILS if tokens <= count and width > TAILS[-1]), width)


class PanelArgs(NamedTuple):
    """blocks: of a row, in panels of integers. each: panels a matrix, where there is no table of experts.py; where there is,
    panels_from and pairs_from are the words where its parts begin."""

    blocks: int
    each: int
    panels_from: int = 0
    pairs_from: int = 0


def _places(width):
    """-> (count(step): panels, places(step, p): (its first row, its tokens, slots that products read),
    row(step, first, t, x): the address of its token t, given that of the one before). Slots behind the tokens are copies of the last one: those results
    are not stored."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import experts, record, step_args

    U = v.U
    apart = record.field("src0.nb", 1)
    ne1, rows, row = record.field("src0.ne", 1), record.rows("src0"), record.row("src0", "src0")
    args = step_args.readers(PanelArgs)
    at, panels_each, table = record.element("src0"), args.each, record.field("src1.data")
    read = experts.reader("src1", args)
    n_panels, panel, pair = read.n_panels, read.panel, read.pair
    few, some = (slots(width, count) for count in TAILS)

    @inline
    def count(step):
        if table(step):
            return n_panels(step)
        return panels_each(step) * (rows(step) // ne1(step))

    @inline
    def up_to(have):
        if have <= few:
            return few
        if have <= some:
            return some
        return width

    @inline
    def places(step, p):
        if table(step):
            first, have = panel(step, p)
            return first, have, up_to(have)
        each = panels_each(step)
        first = p % each * width
        have = min(width, ne1(step) - first)
        return p // each * ne1(step) + first, have, up_to(have)

    @inline
    def address(step, first, t, x):
        if table(step):
            slot, token = pair(step, first + t)
            return at(step, 0, slot % ne1(step), token, 0)
        if t > 0:  # a panel's tokens are of one matrix
            return x + U(apart(step))
        return row(step, first)

    return count, places, address


def panels(width, halves=0):
    """-> kernel: src0 rows to panels of `width`. With a table of experts.py in src1 the rows are those that it lists. The
    threads share pairs of blocks, each with all its tokens: tokens of a pair lie in the same cache lines. Takes PanelArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    np = v.np
    quantize = _quantize()
    ne0, blocks, out = record.field("src0.ne"), step_args.readers(PanelArgs).blocks, record.field("scratch")
    count, places, row = _places(width)
    lower, upper = v.shuffler([*range(8)]), v.shuffler([*range(8, 16)])
    size = U(PANEL_BYTES * width)
    d_at, s_at, n_at, q_at = U(0), U(4 * width), U(8 * width), U(12 * width)
    scatter = v.scatter_i32(8, 4 * width)
    low_half, high_half = v.shuffler([*range(32)]), v.shuffler([*range(32, 64)])
    early, late = v.shuffler([*range(4)]), v.shuffler([*range(4, 8)])

    @v.device
    def put_whole(at, d, sums):
        total = v.hsum(sums)
        v.put_f32(at + s_at, d * np.float32(total))
        v.put_i32(at + n_at, np.int32(-total))

    @v.device
    def put_halves(at, d, sums):
        v.put_i32(at + s_at, np.int32(-v.hsum(early(sums))))
        v.put_i32(at + n_at, np.int32(-v.hsum(late(sums))))

    put_sums = put_halves if halves else put_whole

    @v.device
    def put(at, d, sums, values, copies):
        for _ in range(copies):
            v.put_f32(at + d_at, d)
            put_sums(at, d, sums)
            scatter(at + q_at, values)
            at += U(4)

    def kernel(step, ith, nth, thread):
        n, nb = ne0(step), blocks(step)
        pairs = (nb + 1) // 2
        total = count(step) * pairs
        for i in range(total * ith // nth, total * (ith + 1) // nth):
            p, b = i // pairs, i % pairs * 2
            first, have, end = places(step, p)
            at = out(step) + U(p * nb + b) * size
            x = U(0)
            for t in range(have):
                x = row(step, first, t, x)
                copies = end - t if t == have - 1 else 1
                values, d0, d1, sums = quantize(x + U(128 * b), min(n - b * 32, 64))
                put(at, d0, lower(sums), low_half(values), copies)
                if b + 1 < nb:
                    put(at + size, d1, upper(sums), high_half(values), copies)
                at += U(4)

    return kernel


def columns(width):
    """-> kernel: src0 rows (F32) side by side, `width` at a time: f32[k][width]. Takes PanelArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    U = v.U
    ne0, out = record.field("src0.ne"), record.field("scratch")
    count, places, row = _places(width)
    size, run = U(4 * width), RUN

    def kernel(step, ith, nth, thread):
        n = ne0(step)
        runs = (n + run - 1) // run
        total = count(step) * runs
        for i in range(total * ith // nth, total * (ith + 1) // nth):
            p, begin = i // runs, i % runs * run
            first, have, end = places(step, p)
            token = U(0)
            for t in range(have):
                token = row(step, first, t, token)
                copies = end - t if t == have - 1 else 1
                at = out(step) + U(p * n + begin) * size + U(4 * t)
                x = token + U(4 * begin)
                for _ in range(min(run, n - begin)):
                    for copy in range(copies):
                        v.put_f32(at + U(4 * copy), v.f32_at(x))
                    x += U(4)
                    at += size

    return kernel
