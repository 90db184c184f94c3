"""LIGHTNING_INDEXER: which kernel takes it, and the one for keys of any type and size: a block of threads has 64 cells and one token,
whose heads' queries it multiplies with their keys in tiles of 64 x 64, in f32; what is above zero is weighed and added up over heads
before anything is written.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_lightning_indexer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda import indexer_tile
from pyggml.kernels.cuda.blocks import READ, reader
from pyggml.kernels.cuda.launch_args import Place, entry, place
from pyggml.kernels.cuda.layout import F32, THREADS, blocks, refuse, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.kernels.cuda.tile import DEEP, STEP, TILE

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

WARPS = THREADS // 32


def why_not(node: Tensor) -> str | None:
    q, k, weights, mask = (source(node, i) for i in range(4))
    return refuse_types([F32], node, q, weights) or refuse_types(READ, k) or refuse(mask)


def lower(builder: Builder, node: Tensor) -> None:
    if indexer_tile.takes(builder.cc, node):
        indexer_tile.lower(builder, node)
        return
    q, k, weights, mask = (source(node, i) for i in range(4))
    size, heads, tokens, streams = q.ne
    family, (kind, table) = reader(builder, k.type)
    args = IndexerArgs(
        y=place(node), q=place(q), k=place(k), kind=kind, table=table, w=place(weights), mask=place(mask), size=size,
        heads=heads, tokens=tokens, cells=k.ne[2], masks=mask.ne[3], rows=tokens * streams,
    )  # fmt: skip
    grid = (blocks(args.cells, TILE), min(args.rows, 65535))
    builder.launch(Spec("lightning_indexer", "scores", (family,)), grid, THREADS, args, 2 * 4 * DEEP * STEP)


class IndexerArgs(NamedTuple):
    """`rows`: tokens of all streams; `masks`: so many streams' masks come again and again."""

    y: Place
    q: Place
    k: Place
    kind: i32
    table: i64
    w: Place
    mask: Place
    size: i32
    heads: i32
    tokens: i32
    cells: i32
    masks: i32
    rows: i32


def scores(family):
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.blocks import element
    from pyggml.kernels.cuda.tile import multiplying

    value, multiply = element(family), multiplying()

    @entry(IndexerArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, q, q0, q1, q2, q3, k, k0, k1, k2, k3, kind, table, w, w0, w1, w2, w3, mask, mask0, mask1,
        mask2, mask3, size, heads, tokens, cells, masks, rows,
    ):  # fmt: skip
        me = d.i32(d.thread())
        left = d.shared()
        right = d.i32(left + 4 * DEEP * STEP)
        column, row = d.i32((me & 15) * 4), d.i32((me >> 4) * 4)  # four cells, four heads
        products, found = d.cuda.local.array(16, d.f32), d.cuda.local.array(4, d.f32)
        first = d.i32(d.block_x() * TILE)
        item = d.i32(d.block_y())
        while item < rows:
            stream = d.udiv(item, tokens)
            token = d.i32(item - stream * tokens)
            queries, keys = q + token * q2 + stream * q3, k + stream * k3
            weights = w + token * w1 + stream * w3
            for i in range(4):
                found[i] = d.f32(0)
            h0 = d.i32(0)
            while h0 < heads:
                for i in range(16):
                    products[i] = d.f32(0)
                e0 = d.i32(0)
                while e0 < size:
                    for i in range(4):
                        which = d.i32(me + THREADS * i)
                        e, r = d.i32(which & 15), d.i32(which >> 4)
                        x, z = d.f32(0), d.f32(0)
                        if e0 + e < size:
                            if first + r < cells:
                                x = value(keys + (first + r) * k2, d.i32(e0 + e), k0, kind, table)
                            if h0 + r < heads:
                                z = d.ld_f32(queries + (h0 + r) * q1 + (e0 + e) * q0)
                        d.sst_f32(left + 4 * (e * STEP + r), x)
                        d.sst_f32(right + 4 * (e * STEP + r), z)
                    d.barrier()
                    multiply(left, right, column, row, products)
                    d.barrier()
                    e0 = d.i32(e0 + DEEP)
                for j in range(4):
                    if h0 + row + j < heads:
                        weight = d.ld_f32(weights + (h0 + row + j) * w0)
                        for i in range(4):  # of a NaN and 0 the larger one is 0
                            found[i] = d.fma(d.fmaximum(products[4 * i + j], d.f32(0)), weight, found[i])
                h0 = d.i32(h0 + TILE)
            for i in range(4):
                found[i] = found[i] + d.shuffle_xor_f32(found[i], 16)
                if me & 16 == 0:
                    d.sst_f32(left + 4 * ((me >> 5) * TILE + column + i), found[i])
            d.barrier()
            if me < TILE and first + me < cells:
                total = d.f32(0)
                for i in range(WARPS):
                    total = total + d.sld_f32(left + 4 * (i * TILE + me))
                seen = d.ld_f16(mask + (first + me) * mask0 + token * mask1 + d.urem(stream, masks) * mask3)
                d.st_f32(y + (first + me) * y0 + token * y1 + stream * y3, total + seen)
            d.barrier()
            item = d.i32(item + d.blocks_y())

    return kernel
