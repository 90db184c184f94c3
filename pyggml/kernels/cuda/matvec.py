"""MUL_MAT with 1 to 8 columns: what decoding is made of. Each row of weights is read once, as it lies in memory.

Owns the kernels and how rows are given to warps. A warp takes two rows at a time, so that activations, which come from
the first cache, are loaded once for both; with few rows up to four warps share the two. Where the products of two
matrices become a GLU, the two rows are one of either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES
from pyggml.kernels.cuda import experts
from pyggml.kernels.cuda.activations import quantized
from pyggml.kernels.cuda.launch_args import Rows, entry, rows
from pyggml.kernels.cuda.layout import FLOATS, blocks
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.kernels.cuda.unpack import ALIGNMENT, HALVES, UNPACKED
from pyggml.kernels.cuda.unpack_codebook import codebook_of

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

MOST_COLUMNS = 8
WARPS = 4
ROWS = 2
ENOUGH_WARPS = 4096
"""So many keep a large GPU busy: fewer rows are split among more warps."""


def takes(node: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether these kernels can do the product: few columns, dense rows, addresses that are aligned."""
    if (
        not 0 < experts.columns(node) <= MOST_COLUMNS
        or b.nb[0] != 4
        or node.nb[0] != 4
        or experts.batches(node) > 65535
    ):
        return False
    _, a1, a2, a3 = a.nb
    if a.type in FLOATS:
        _, b1, b2, b3 = b.nb
        aligned = not (a.data | a1 | a2 | a3 | b.data | b1 | b2 | b3) & 15
        return aligned and a.ne[0] % 8 == 0 and a.nb[0] == SIZES[a.type].type_size
    step = ALIGNMENT.get(a.type, 2)  # a power of two
    return a.type in UNPACKED and not (a.data | a1 | a2 | a3) & (step - 1)


def warps_a_row(n_rows: int, groups: int) -> int:
    """How many warps share two rows of so many groups of 32 lanes' work: 1, 2 or 4, by the shapes alone."""
    share = 1
    while share < WARPS and groups > 32 * share and n_rows // ROWS * share < ENOUGH_WARPS:
        share *= 2
    return share


class Product(NamedTuple):
    """Where the results and the matrices lie, rows of a matrix, columns, and which matrix a batch has."""

    y: Rows
    a: Rows
    n_rows: i32
    m: i32
    batch: i32
    ratio2: i32
    ratio3: i32


class Ending(NamedTuple):
    """What is done with the sums before they are stored: something added, or they are gates for another matrix's sums.

    added: its address, and from column to column. up: the second matrix, and from row to row; glu: the function's number.
    """

    added: i64 = 0
    added1: i64 = 0
    up: i64 = 0
    up1: i64 = 0
    glu: i32 = 0


PLAIN = Ending()


def lower(builder: Builder, node: Tensor, a: Tensor, b: Tensor, result: Tensor, ending: Ending = PLAIN) -> None:
    """The product `node`, which lands in `result`."""
    columns = experts.columns(node)
    variant = 1 if columns == 1 else MOST_COLUMNS
    groups = a.ne[0] // 32 if a.type not in FLOATS else a.ne[0] // 8
    share = warps_a_row(a.ne[1], groups)
    grid = (blocks(a.ne[1], (1 if ending.up else ROWS) * (WARPS // share)), 1, experts.batches(node))
    shared = 4 * WARPS * ROWS * variant
    product = Product(
        y=rows(result), a=rows(a), n_rows=a.ne[1], m=columns, batch=b.ne[2], ratio2=max(1, b.ne[2] // a.ne[2]),
        ratio3=b.ne[3] // a.ne[3],
    )  # fmt: skip
    lists = experts.lists(builder, node)
    if a.type in FLOATS:
        spec = Spec("matvec", "floats", (a.type.name, variant))
        args = FloatsArgs(product, b=rows(b), groups=groups, share=share, lists=lists, ending=ending)
        builder.launch(spec, grid, 32 * WARPS, args, shared)
    else:
        spec = Spec("matvec", "integers", (a.type.name, variant))
        x = quantized(builder, b)
        packed = IntegersArgs(
            product,
            x=x.bytes,
            scales=x.scales,
            step=x.step,
            codebook=codebook_of(builder, a.type),
            groups=groups,
            share=share,
            lists=lists,
            ending=ending,
        )
        builder.launch(spec, grid, 32 * WARPS, packed, shared)


def gating():
    """-> f(x, g, glu): REGLU, GEGLU or SWIGLU."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.functions import gates

    silu, gelu, _, _, _ = gates()

    @d.inline
    def gated(x, g, glu):
        if glu == 0:
            return x * g if x > d.f32(0) else d.f32(0)
        return (gelu(x) if glu == 1 else silu(x)) * g

    return gated


def _finish(columns):
    """-> f(total, ...): add up what lanes and warps have, and store it."""
    from pyggml.kernels.cuda import device as d

    sums = ROWS * columns
    gated = gating()

    @d.inline
    def finish(total, y, y1, first, n_rows, m, share, added, added1, up, glu):
        lane = d.thread() & 31
        warp = d.thread() >> 5
        for i in range(sums):
            total[i] = d.warp_sum(total[i])
        area = d.shared()
        if lane == 0:
            for i in range(sums):
                d.sst_f32(area + (warp * sums + i) * 4, total[i])
        d.barrier()
        if warp % share == 0:
            whole = d.f32(0)
            if lane < sums:
                for w in range(WARPS):
                    if w < share:
                        whole += d.sld_f32(area + ((warp + w) * sums + lane) * 4)
            r = lane // columns
            c = lane - r * columns
            if up != 0:
                other = d.shuffle_f32(whole, (lane + columns) & 31)
                if lane < columns and first < n_rows and c < m:
                    d.st_f32(y + c * y1 + first * 4, gated(whole, other, glu))
            elif lane < sums and first + r < n_rows and c < m:
                if added != 0:
                    whole = whole + d.ld_f32(added + c * added1 + (first + r) * 4)
                d.st_f32(y + c * y1 + (first + r) * 4, whole)

    return finish


class IntegersArgs(NamedTuple):
    product: Product
    x: i64
    scales: i64
    step: i32
    codebook: i64
    groups: i32
    share: i32
    lists: experts.Lists
    ending: Ending


def integers(name, columns):
    """Blocks of integers with activations of bytes."""
    from pyggml.dtypes import GGMLType
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.experts import chosen
    from pyggml.kernels.cuda.unpack import unpack

    group = unpack(name)
    halves = GGMLType[name] in HALVES
    finish, choose = _finish(columns), chosen()
    ones = 0x01010101
    sums, eights, fours = ROWS * columns, ROWS * 8, ROWS * 4

    @entry(IntegersArgs, 32 * WARPS)
    def kernel(
        y, y1, y2, y3, a, a1, a2, a3, n_rows, m, batch, ratio2, ratio3, x, scales, step, codebook, groups, share, ids, ids0,
        ids1, used, shared_rows, limit, number, status, added, added1, up, up1, glu,
    ):  # fmt: skip
        lane = d.i32(d.thread() & 31)
        warp = d.i32(d.thread() >> 5)
        z = d.i32(d.block_z())
        i3 = d.udiv(z, batch)
        i2 = d.i32(z - i3 * batch)
        pair = d.i32(d.block_x() * d.udiv(WARPS, share) + d.udiv(warp, share))
        first = pair if up != 0 else d.i32(pair * ROWS)
        matrix = a + d.udiv(i2, ratio2) * a2 + d.udiv(i3, ratio3) * a3
        to = y + i2 * y2 + i3 * y3
        column0 = z * m
        if ids != 0:
            which, row, slot, token = choose(z, ids, ids0, ids1, used, shared_rows, limit, number, status)
            matrix = a + max(which, 0) * a2
            to = y + slot * y1 + token * y2
            column0 = d.i32(token * shared_rows + row)
            if which < 0:
                m = d.i32(0)
        rows = d.cuda.local.array(ROWS, d.i64)
        for r in range(ROWS):
            rows[r] = matrix + min(first + r, n_rows - 1) * a1
        if up != 0:
            rows[1] = up + min(first, n_rows - 1) * up1
        total = d.cuda.local.array(sums, d.f32)
        for i in range(ROWS * columns):
            total[i] = d.f32(0)
        q = d.cuda.local.array(eights, d.i32)
        by = d.cuda.local.array(fours, d.f32)
        j = d.i32(lane + d.urem(warp, share) * 32)
        while j < groups:
            for r in range(ROWS):
                if halves:
                    (q[8 * r], q[8 * r + 1], q[8 * r + 2], q[8 * r + 3], q[8 * r + 4], q[8 * r + 5], q[8 * r + 6],
                     q[8 * r + 7], by[4 * r], by[4 * r + 1], by[4 * r + 2], by[4 * r + 3]) = group(rows[r], j, codebook)  # fmt: skip
                else:
                    (q[8 * r], q[8 * r + 1], q[8 * r + 2], q[8 * r + 3], q[8 * r + 4], q[8 * r + 5], q[8 * r + 6],
                     q[8 * r + 7], by[4 * r], by[4 * r + 1]) = group(rows[r], j, codebook)  # fmt: skip
            for c in range(columns):
                if c < m:
                    at = x + (column0 + c) * d.i64(step) + j * 32
                    u0, u1, u2, u3 = d.ld_i32x4(at)
                    u4, u5, u6, u7 = d.ld_i32x4(at + 16)
                    scale, scaled_sum = d.ld_f32x2(scales + (column0 + c) * d.i64(step >> 2) + j * 8)
                    if halves:
                        s = d.dp4a(ones, u3, d.dp4a(ones, u2, d.dp4a(ones, u1, d.dp4a(ones, u0, 0))))
                        low_sum = scale * d.f32(s)
                        high_sum = scaled_sum - low_sum
                        for r in range(ROWS):
                            s = d.dp4a(q[8 * r], u0, 0)
                            s = d.dp4a(q[8 * r + 1], u1, s)
                            s = d.dp4a(q[8 * r + 2], u2, s)
                            s = d.dp4a(q[8 * r + 3], u3, s)
                            t = d.dp4a(q[8 * r + 4], u4, 0)
                            t = d.dp4a(q[8 * r + 5], u5, t)
                            t = d.dp4a(q[8 * r + 6], u6, t)
                            t = d.dp4a(q[8 * r + 7], u7, t)
                            both = d.fma(by[4 * r], d.f32(s), by[4 * r + 2] * d.f32(t))
                            low = d.fma(by[4 * r + 1], low_sum, by[4 * r + 3] * high_sum)
                            i = r * columns + c
                            total[i] = total[i] + d.fma(both, scale, low)
                    else:
                        for r in range(ROWS):
                            s = d.dp4a(q[8 * r], u0, 0)
                            s = d.dp4a(q[8 * r + 1], u1, s)
                            s = d.dp4a(q[8 * r + 2], u2, s)
                            s = d.dp4a(q[8 * r + 3], u3, s)
                            s = d.dp4a(q[8 * r + 4], u4, s)
                            s = d.dp4a(q[8 * r + 5], u5, s)
                            s = d.dp4a(q[8 * r + 6], u6, s)
                            s = d.dp4a(q[8 * r + 7], u7, s)
                            i = r * columns + c
                            total[i] = d.fma(by[4 * r] * scale, d.f32(s), d.fma(by[4 * r + 1], scaled_sum, total[i]))
            j = d.i32(j + share * 32)
        finish(total, to, y1, first, n_rows, m, share, added, added1, up, glu)

    return kernel


def eight_values(name):
    """-> f(at): eight F32, F16 or BF16 as f32; how many bytes they take."""
    from pyggml.kernels.cuda import device as d

    wide, brain = name == "F32", name == "BF16"
    size = 32 if wide else 16

    @d.inline
    def low(word):
        return d.b2f(word) if brain else d.h2f(word)

    @d.inline
    def high(word):
        return d.b2f(word >> 16) if brain else d.h2f(word >> 16)

    @d.inline
    def eight(at):
        if wide:
            v0, v1, v2, v3 = d.ld_f32x4(at)
            v4, v5, v6, v7 = d.ld_f32x4(at + 16)
            return v0, v1, v2, v3, v4, v5, v6, v7
        w0, w1, w2, w3 = d.ld_i32x4(at)
        return low(w0), high(w0), low(w1), high(w1), low(w2), high(w2), low(w3), high(w3)

    return eight, size


class FloatsArgs(NamedTuple):
    product: Product
    b: Rows
    groups: i32
    share: i32
    lists: experts.Lists
    ending: Ending


def floats(name, columns):
    """F32, F16 or BF16 with F32: a lane takes 8 values at a time."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.experts import chosen

    finish, choose = _finish(columns), chosen()
    sums, eights = ROWS * columns, ROWS * 8
    eight, size = eight_values(name)

    @entry(FloatsArgs, 32 * WARPS)
    def kernel(
        y, y1, y2, y3, a, a1, a2, a3, n_rows, m, batch, ratio2, ratio3, b, b1, b2, b3, groups, share, ids, ids0,
        ids1, used, shared_rows, limit, number, status, added, added1, up, up1, glu,
    ):  # fmt: skip
        lane = d.i32(d.thread() & 31)
        warp = d.i32(d.thread() >> 5)
        z = d.i32(d.block_z())
        i3 = d.udiv(z, batch)
        i2 = d.i32(z - i3 * batch)
        pair = d.i32(d.block_x() * d.udiv(WARPS, share) + d.udiv(warp, share))
        first = pair if up != 0 else d.i32(pair * ROWS)
        matrix = a + d.udiv(i2, ratio2) * a2 + d.udiv(i3, ratio3) * a3
        x = b + i2 * b2 + i3 * b3
        to = y + i2 * y2 + i3 * y3
        if ids != 0:
            which, row, slot, token = choose(z, ids, ids0, ids1, used, shared_rows, limit, number, status)
            matrix = a + max(which, 0) * a2
            to = y + slot * y1 + token * y2
            x = b + row * b1 + token * b2
            if which < 0:
                m = d.i32(0)
        rows = d.cuda.local.array(ROWS, d.i64)
        for r in range(ROWS):
            rows[r] = matrix + min(first + r, n_rows - 1) * a1
        if up != 0:
            rows[1] = up + min(first, n_rows - 1) * up1
        total = d.cuda.local.array(sums, d.f32)
        for i in range(ROWS * columns):
            total[i] = d.f32(0)
        w = d.cuda.local.array(eights, d.f32)
        j = d.i32(lane + d.urem(warp, share) * 32)
        while j < groups:
            for r in range(ROWS):
                (w[8 * r], w[8 * r + 1], w[8 * r + 2], w[8 * r + 3], w[8 * r + 4], w[8 * r + 5], w[8 * r + 6],
                 w[8 * r + 7]) = eight(rows[r] + j * size)  # fmt: skip
            for c in range(columns):
                if c < m:
                    u0, u1, u2, u3 = d.ld_f32x4(x + c * b1 + j * 32)
                    u4, u5, u6, u7 = d.ld_f32x4(x + c * b1 + j * 32 + 16)
                    for r in range(ROWS):
                        i = r * columns + c
                        s = d.fma(w[8 * r], u0, total[i])
                        s = d.fma(w[8 * r + 1], u1, s)
                        s = d.fma(w[8 * r + 2], u2, s)
                        s = d.fma(w[8 * r + 3], u3, s)
                        s = d.fma(w[8 * r + 4], u4, s)
                        s = d.fma(w[8 * r + 5], u5, s)
                        s = d.fma(w[8 * r + 6], u6, s)
                        total[i] = d.fma(w[8 * r + 7], u7, s)
            j = d.i32(j + share * 32)
        finish(total, to, y1, first, n_rows, m, share, added, added1, up, glu)

    return kernel
