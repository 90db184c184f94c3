"""LIGHTNING_INDEXER on tensor cores, for keys of F16 and of blocks that become F16 on their way into shared memory. Compute
capability 8.0.

A warp has 16 cells, whose keys stay in its registers from token to token; the queries of a token, 64 heads at a time, lie in shared
memory. A query is the sum of two F16, what rounding takes from the first being the second: so that with keys of F16 products are
those of F32, and the cells with the best scores are the CPU's. Queries have to be in the range of F16. Owns tiles and fragments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.attention_load import OLDEST, block_halves, is_loaded, is_packed, layout_of
from pyggml.kernels.cuda.launch_args import Place, entry, place
from pyggml.kernels.cuda.layout import THREADS, blocks, source
from pyggml.kernels.cuda.spec import Spec, i32

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

CELLS, HEADS = THREADS // 2, 64
LEAST_KEY, MOST_KEY = 64, 128
BLOCKS_A_MULTIPROCESSOR = 4
"""So many are wanted, that is: fewer tokens a block where cells are few."""


def takes(cc: tuple[int, int], node: Tensor) -> bool:
    """Whether this kernel can do it: this GPU, these types, keys of whole tiles, addresses that are aligned."""
    q, k = source(node, 0), source(node, 1)
    if (
        cc < OLDEST
        or q.ne[0] % (32 if is_packed(k) else 16)
        or not LEAST_KEY <= q.ne[0] <= MOST_KEY
        or not is_loaded(k)
    ):
        return False
    return q.nb[0] == 4 and all(b % 8 == 0 for b in (q.data, *q.nb[1:]))


def lower(builder: Builder, node: Tensor) -> None:
    q, k, weights, mask = (source(node, i) for i in range(4))
    size, heads, tokens, streams = q.ne
    args = TiledArgs(
        y=place(node), q=place(q), k=place(k), w=place(weights), mask=place(mask), heads=heads, tokens=tokens, cells=k.ne[2],
        masks=mask.ne[3], rows=tokens * streams, **layout_of("k", k),
    )  # fmt: skip
    of_cells = blocks(args.cells, CELLS)
    enough = blocks(BLOCKS_A_MULTIPROCESSOR * builder.multiprocessors, of_cells)
    shared = 2 * HEADS * (2 * size + 16) + 4 * HEADS
    spec = Spec("indexer_tile", "scores", (size, int(is_packed(k))))
    builder.launch(spec, (of_cells, min(args.rows, enough, 65535)), THREADS, args, shared)


class TiledArgs(NamedTuple):
    """`rows`: tokens of all streams; `masks`: so many streams' masks come again and again."""

    y: Place
    q: Place
    k: Place
    w: Place
    mask: Place
    heads: i32
    tokens: i32
    cells: i32
    masks: i32
    rows: i32
    kind_k: i32
    size_k: i32
    start_k: i32


def scores(size, packed):
    from pyggml.kernels.cuda import device as d

    halves = block_halves() if packed else None
    deep, pairs, chunks = size // 16, size // 2, size // 8
    row_bytes = 2 * size + 16  # eight rows then lie in different banks
    low = HEADS * row_bytes
    n_keys = 4 * deep

    @d.inline
    def rest_of(x, high):
        rest = x - high
        return rest if rest - rest == d.f32(0) else d.f32(0)  # nothing is left of infinity

    @d.inline
    def positive(x, rest):
        """A product's larger part and the smaller one, if that is above 0; what is infinite is so without the smaller part."""
        whole = x + rest
        x = whole if whole == whole else x
        return d.fmaximum(x, d.f32(0))  # of a NaN and 0 the larger one is 0

    @entry(TiledArgs, THREADS, blocks=2)
    def kernel(
        y, y0, y1, y2, y3, q, q0, q1, q2, q3, k, k0, k1, k2, k3, w, w0, w1, w2, w3, mask, mask0, mask1, mask2, mask3,
        heads, tokens, cells, masks, rows, kind_k, size_k, start_k,
    ):  # fmt: skip
        me = d.i32(d.thread())
        lane, warp = d.i32(me & 31), d.i32(me >> 5)
        g, t = d.i32(lane >> 2), d.i32(lane & 3)
        area = d.shared()
        weights = d.i32(area + 2 * low)
        first = d.i32(d.block_x() * CELLS)
        mine = d.i32(area + (16 * warp + (lane & 15)) * row_bytes + (lane >> 4) * 16)
        column = d.i32(area + ((lane >> 4) * 8 + (lane & 7)) * row_bytes + ((lane >> 3) & 1) * 16)
        keys, found = d.cuda.local.array(n_keys, d.i32), d.cuda.local.array(2, d.f32)
        held = d.i32(-1)
        item = d.i32(d.block_y())
        while item < rows:
            stream = d.udiv(item, tokens)
            token = d.i32(item - stream * tokens)
            if stream != held:  # the keys, by way of the queries' memory
                d.barrier()
                i = me
                while i < CELLS * chunks:
                    row = d.udiv(i, chunks)
                    part = d.i32(i - row * chunks)
                    line = k + min(first + row, cells - 1) * k2 + stream * k3
                    to = area + row * row_bytes + part * 16
                    if packed:
                        halves(to, line, part * 8, kind_k, size_k, start_k)
                    else:
                        d.cp_async16(to, line + part * 16)
                    i = d.i32(i + THREADS)
                d.cp_async_commit()
                d.cp_async_wait()
                d.barrier()
                for j in range(deep):
                    keys[4 * j], keys[4 * j + 1], keys[4 * j + 2], keys[4 * j + 3] = d.ldmatrix_x4(mine + 32 * j)
                held = stream
            found[0], found[1] = d.f32(0), d.f32(0)
            h0 = d.i32(0)
            while h0 < heads:
                d.barrier()
                i = me
                while i < HEADS * pairs:
                    row = d.udiv(i, pairs)
                    part = d.i32(i - row * pairs)
                    x0, x1 = d.f32(0), d.f32(0)
                    if h0 + row < heads:
                        x0, x1 = d.ld_f32x2(q + (h0 + row) * q1 + token * q2 + stream * q3 + part * 8)
                    high = d.pack_f16(x0, x1)
                    to = area + row * row_bytes + part * 4
                    d.sst_i32(to, high)
                    d.sst_i32(to + low, d.pack_f16(rest_of(x0, d.h2f(high)), rest_of(x1, d.h2f(d.shr(high, 16)))))
                    i = d.i32(i + THREADS)
                if me < HEADS:
                    x0 = d.f32(0)
                    if h0 + me < heads:
                        x0 = d.ld_f32(w + (h0 + me) * w0 + token * w1 + stream * w3)
                    d.sst_f32(weights + 4 * me, x0)
                d.barrier()
                h = d.i32(0)
                while h < min(HEADS, heads - h0):
                    a0, a1, a2, a3 = d.f32(0), d.f32(0), d.f32(0), d.f32(0)
                    c0, c1, c2, c3 = d.f32(0), d.f32(0), d.f32(0), d.f32(0)
                    r0, r1, r2, r3 = d.f32(0), d.f32(0), d.f32(0), d.f32(0)
                    s0, s1, s2, s3 = d.f32(0), d.f32(0), d.f32(0), d.f32(0)
                    at = d.i32(column + h * row_bytes)
                    for j in range(deep):
                        u0, u1, u2, u3 = keys[4 * j], keys[4 * j + 1], keys[4 * j + 2], keys[4 * j + 3]
                        b0, b1, b2, b3 = d.ldmatrix_x4(at + 32 * j)
                        a0, a1, a2, a3 = d.mma_f16(u0, u1, u2, u3, b0, b1, a0, a1, a2, a3)
                        c0, c1, c2, c3 = d.mma_f16(u0, u1, u2, u3, b2, b3, c0, c1, c2, c3)
                        b0, b1, b2, b3 = d.ldmatrix_x4(at + 32 * j + low)
                        r0, r1, r2, r3 = d.mma_f16(u0, u1, u2, u3, b0, b1, r0, r1, r2, r3)
                        s0, s1, s2, s3 = d.mma_f16(u0, u1, u2, u3, b2, b3, s0, s1, s2, s3)
                    v0, v1 = d.sld_f32x2(weights + (h + 2 * t) * 4)
                    v2, v3 = d.sld_f32x2(weights + (h + 8 + 2 * t) * 4)
                    found[0] = d.fma(positive(a0, r0), v0, d.fma(positive(a1, r1), v1, found[0]))
                    found[0] = d.fma(positive(c0, s0), v2, d.fma(positive(c1, s1), v3, found[0]))
                    found[1] = d.fma(positive(a2, r2), v0, d.fma(positive(a3, r3), v1, found[1]))
                    found[1] = d.fma(positive(c2, s2), v2, d.fma(positive(c3, s3), v3, found[1]))
                    h = d.i32(h + 16)
                h0 = d.i32(h0 + HEADS)
            for r in range(2):
                x = found[r] + d.shuffle_xor_f32(found[r], 1)
                x = x + d.shuffle_xor_f32(x, 2)
                cell = d.i32(first + 16 * warp + g + 8 * r)
                if t == 0 and cell < cells:
                    seen = d.ld_f16(mask + cell * mask0 + token * mask1 + d.urem(stream, masks) * mask3)
                    d.st_f32(y + cell * y0 + token * y1 + stream * y3, x + seen)
            item = d.i32(item + d.blocks_y())

    return kernel
