"""MUL_MAT with one column, which decoding is made of, and what follows it in the same launch.

A warp takes two rows at a time, mostly two groups of 32 lanes' work in flight; with few rows up to four warps share the two.
Products of the same activations are one launch, up to three matrices of a type; each may have something added. Or the two
rows are one of either of two matrices, whose products become a GLU. The last block of a launch makes the norm of the
result, the last of the blocks that make 128 values of a GLU their bytes: no launch of its own waits for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyggml.kernels.cuda.activations import Activations, quantized
from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import FLOATS, blocks
from pyggml.kernels.cuda.matvec import ROWS, WARPS, warps_a_row
from pyggml.kernels.cuda.normed import AREA, Normed
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.kernels.cuda.unpack import HALVES, has_minimum
from pyggml.kernels.cuda.unpack_codebook import codebook_of

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

MOST = 3
"""Matrices of one launch."""
ALONE = ("Q3_K", "Q5_K", "Q6_K")
"""Types with so many loads and registers a group that one in flight is enough, and leaves room for more warps."""
NEVER = 2**31 - 1
"""The first block of a matrix that is not there."""
GROUP = 32 * WARPS
"""Rows of a GLU whose bytes one block makes."""
BLOCKS = 5
"""The logarithm of how many blocks make so many rows, where each warp has one of its own."""


class Activation(NamedTuple):
    """Bytes and scales of what the matrices are multiplied with, or F32 (no scales); groups of a row; the logarithm of how many
    warps share two rows; from row to row."""

    x: i64
    scales: i64
    codebook: i64
    groups: i32
    shift: i32
    a1: i64


def activation(builder: Builder, a: Tensor, b: Tensor, shift: int) -> Activation:
    if a.type in FLOATS:
        return Activation(b.data, 0, 0, a.ne[0] // 8, shift, a.nb[1])
    made = quantized(builder, b)
    return Activation(made.bytes, made.scales, codebook_of(builder, a.type), a.ne[0] // 32, shift, a.nb[1])


def shift_of(a: Tensor, rows: int) -> int:
    return warps_a_row(rows, a.ne[0] // (8 if a.type in FLOATS else 32)).bit_length() - 1


def lower_products(
    builder: Builder, b: Tensor, found: list[tuple[Tensor, Tensor, int]], norm: Normed | None = None
) -> None:
    """`found`: matrix, result and the address of what is added of each product with b. norm: of the one result."""
    a, rows = found[0][0], sum(a.ne[1] for a, _, _ in found)
    shift = shift_of(a, rows)
    begins, at = [], 0
    for matrix, _, _ in found:
        begins.append(at)
        at += blocks(matrix.ne[1], ROWS * (WARPS >> shift))
    named: dict[str, Any] = {}
    for i, word in enumerate(("", "_2", "_3")):
        there = i < len(found)
        matrix, result, added = found[i] if there else found[0]
        named[f"y{word}"], named[f"a{word}"] = result.data, matrix.data
        named[f"n{word}"], named[f"added{word}"] = matrix.ne[1], added
        if i:
            named[f"begin{word}"] = begins[i] if there else NEVER
    ticket = builder.counters(1) if norm is not None else 0
    args = ProductsArgs(activation(builder, a, b, shift), **named, ticket=ticket, norm=norm or Normed())
    builder.launch(Spec("matvec_one", "products", (a.type.name,)), (at,), 32 * WARPS, args, SHARED)


def lower_glu(
    builder: Builder, gate: Tensor, up: Tensor, b: Tensor, result: Tensor, kind: int, made: Activations | None
) -> None:
    """Products of two matrices with b, of which `kind` makes one; `made`: where its bytes go."""
    n = gate.ne[1]
    shift = shift_of(gate, n)
    each = WARPS >> shift
    ticket = builder.counters(blocks(n, GROUP)) if made is not None else 0
    args = GluArgs(
        activation(builder, gate, b, shift), y=result.data, a=gate.data, up=up.data, up1=up.nb[1], n=n, kind=kind, ticket=ticket,
        q=made.bytes if made is not None else 0, q_scales=made.scales if made is not None else 0,
    )  # fmt: skip
    builder.launch(Spec("matvec_one", "glu", (gate.type.name,)), (blocks(n, each),), 32 * WARPS, args, SHARED)


SHARED = 8 * WARPS + 16 + AREA
"""Bytes of shared memory: sums of warps, a ticket, the area of a norm."""


def _dots(name: str):
    """-> f(t0, t1, r0, r1, x, scales, j, codebook): t0 and t1 with group j of two rows added. Activations are asked for first,
    so that they do not wait behind weights."""
    from pyggml.kernels.cuda import device as d

    return d.inline(_of_floats(d, name) if name in ("F32", "F16", "BF16") else _of_integers(d, name))


def _of_integers(d, name):
    from pyggml.dtypes import GGMLType
    from pyggml.kernels.cuda.unpack import unpack

    group, halves = unpack(name), GGMLType[name] in HALVES
    minimum = has_minimum(GGMLType[name], signed=False)
    ones = 0x01010101

    @d.inline
    def four(q0, q1, q2, q3, u0, u1, u2, u3, s):
        return d.dp4a(q3, u3, d.dp4a(q2, u2, d.dp4a(q1, u1, d.dp4a(q0, u0, s))))

    @d.inline
    def whole(total, row, j, codebook, u0, u1, u2, u3, u4, u5, u6, u7, scale, scaled_sum):
        q0, q1, q2, q3, q4, q5, q6, q7, by, low = group(row, j, codebook)
        s = four(q4, q5, q6, q7, u4, u5, u6, u7, four(q0, q1, q2, q3, u0, u1, u2, u3, 0))
        if minimum:
            total = d.fma(low, scaled_sum, total)
        return d.fma(by * scale, d.f32(s), total)

    @d.inline
    def halved(total, row, j, codebook, u0, u1, u2, u3, u4, u5, u6, u7, scale, low_sum, high_sum):
        q0, q1, q2, q3, q4, q5, q6, q7, by, low, by2, low2 = group(row, j, codebook)
        s = four(q0, q1, q2, q3, u0, u1, u2, u3, 0)
        t = four(q4, q5, q6, q7, u4, u5, u6, u7, 0)
        if minimum:
            total = total + d.fma(low, low_sum, low2 * high_sum)
        return d.fma(d.fma(by, d.f32(s), by2 * d.f32(t)), scale, total)

    def integers(t0, t1, r0, r1, x, scales, j, codebook):
        u0, u1, u2, u3 = d.ld_i32x4(x + j * 32)
        u4, u5, u6, u7 = d.ld_i32x4(x + j * 32 + 16)
        scale, scaled_sum = d.ld_f32x2(scales + j * 8)
        if halves:
            low_sum = d.f32(0)
            if minimum:
                low_sum = scale * d.f32(four(ones, ones, ones, ones, u0, u1, u2, u3, 0))
            high_sum = scaled_sum - low_sum
            t0 = halved(t0, r0, j, codebook, u0, u1, u2, u3, u4, u5, u6, u7, scale, low_sum, high_sum)
            t1 = halved(t1, r1, j, codebook, u0, u1, u2, u3, u4, u5, u6, u7, scale, low_sum, high_sum)
        else:
            t0 = whole(t0, r0, j, codebook, u0, u1, u2, u3, u4, u5, u6, u7, scale, scaled_sum)
            t1 = whole(t1, r1, j, codebook, u0, u1, u2, u3, u4, u5, u6, u7, scale, scaled_sum)
        return t0, t1

    return integers


def _of_floats(d, name):
    """A lane takes 8 values at a time."""
    from pyggml.kernels.cuda.matvec import eight_values

    eight, size = eight_values(name)

    @d.inline
    def one(total, row, j, u0, u1, u2, u3, u4, u5, u6, u7):
        w0, w1, w2, w3, w4, w5, w6, w7 = eight(row + j * size)
        total = d.fma(w3, u3, d.fma(w2, u2, d.fma(w1, u1, d.fma(w0, u0, total))))
        return d.fma(w7, u7, d.fma(w6, u6, d.fma(w5, u5, d.fma(w4, u4, total))))

    def floats(t0, t1, r0, r1, x, scales, j, codebook):
        u0, u1, u2, u3 = d.ld_f32x4(x + j * 32)
        u4, u5, u6, u7 = d.ld_f32x4(x + j * 32 + 16)
        t0 = one(t0, r0, j, u0, u1, u2, u3, u4, u5, u6, u7)
        t1 = one(t1, r1, j, u0, u1, u2, u3, u4, u5, u6, u7)
        return t0, t1

    return floats


def _sums(name: str):
    """-> f(r0, r1, x, scales, codebook, groups, shift): the products of two rows, whole in all lanes of the first of the warps that
    share them; all threads call it."""
    from pyggml.kernels.cuda import device as d

    dots, ahead = _dots(name), name not in ALONE

    @d.inline
    def both(r0, r1, x, scales, codebook, groups, shift):
        lane, warp = d.i32(d.thread() & 31), d.i32(d.thread() >> 5)
        part, step = d.i32(warp & ((1 << shift) - 1)), d.i32(32 << shift)
        t0, t1 = d.f32(0), d.f32(0)
        j = d.i32(lane + part * 32)
        while ahead and j + step < groups:
            t0, t1 = dots(t0, t1, r0, r1, x, scales, j, codebook)
            t0, t1 = dots(t0, t1, r0, r1, x, scales, d.i32(j + step), codebook)
            j = d.i32(j + 2 * step)
        while j < groups:
            t0, t1 = dots(t0, t1, r0, r1, x, scales, j, codebook)
            j = d.i32(j + step)
        t0, t1 = d.warp_sum(t0), d.warp_sum(t1)
        if shift != 0:
            at = d.i32(d.shared() + warp * 8)
            if lane == 0:
                d.sst_f32x2(at, t0, t1)
            d.barrier()
            if part == 0:
                for w in range(1, WARPS):
                    if w < 1 << shift:
                        more0, more1 = d.sld_f32x2(at + 8 * w)
                        t0, t1 = t0 + more0, t1 + more1
        return t0, t1, part

    return both


class ProductsArgs(NamedTuple):
    """begin_2, begin_3: the first blocks of the second and third matrix. ticket: of all blocks, where there is a norm."""

    activation: Activation
    y: i64
    a: i64
    n: i32
    added: i64
    y_2: i64
    a_2: i64
    n_2: i32
    added_2: i64
    begin_2: i32
    y_3: i64
    a_3: i64
    n_3: i32
    added_3: i64
    begin_3: i32
    ticket: i64
    norm: Normed


def products(name):
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.normed import row
    from pyggml.kernels.cuda.tickets import last

    sums, is_last, norm_row = _sums(name), last(), row()

    @entry(ProductsArgs, 32 * WARPS)
    def kernel(
        x, scales, codebook, groups, shift, a1, y, a, n, added, y_2, a_2, n_2, added_2, begin_2, y_3, a_3, n_3, added_3,
        begin_3, ticket, z, weights, eps, wide, q, q_scales, q_step,
    ):  # fmt: skip
        block = d.i32(d.block_x())
        if block >= begin_3:
            block, y, a, n, added = d.i32(block - begin_3), y_3, a_3, n_3, added_3
        elif block >= begin_2:
            block, y, a, n, added = d.i32(block - begin_2), y_2, a_2, n_2, added_2
        first = d.i32(d.shr(block * WARPS + (d.thread() >> 5), shift) * ROWS)
        r0, r1 = a + min(first, n - 1) * a1, a + min(first + 1, n - 1) * a1
        t0, t1, part = sums(r0, r1, x, scales, codebook, groups, shift)
        me = first + (d.thread() & 31)
        if part == 0 and d.thread() & 31 < ROWS and me < n:
            total = t1 if d.thread() & 1 == 1 else t0
            if added != 0:
                total = total + d.ld_f32(added + me * 4)
            d.st_f32(y + me * 4, total)
        if ticket != 0 and is_last(ticket, d.blocks_x(), d.shared() + 8 * WARPS):
            norm_row(y, n, z, weights, eps, wide, q, q_scales, q_step, d.shared() + 8 * WARPS + 16)

    return kernel


class GluArgs(NamedTuple):
    """kind: of the GLU. ticket: of each GROUP rows' blocks, where their bytes are wanted."""

    activation: Activation
    y: i64
    a: i64
    up: i64
    up1: i64
    n: i32
    kind: i32
    ticket: i64
    q: i64
    q_scales: i64


def glu(name):
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.activations import quantizing
    from pyggml.kernels.cuda.matvec import gating
    from pyggml.kernels.cuda.tickets import last

    sums, gated, is_last, put = _sums(name), gating(), last(), quantizing()

    @entry(GluArgs, 32 * WARPS)
    def kernel(x, scales, codebook, groups, shift, a1, y, a, up, up1, n, kind, ticket, q, q_scales):
        me = d.shr(d.block_x() * WARPS + (d.thread() >> 5), shift)
        row = min(me, n - 1)
        t0, t1, part = sums(a + row * a1, up + row * up1, x, scales, codebook, groups, shift)
        if part == 0 and d.thread() & 31 == 0 and me < n:
            d.st_f32(y + me * 4, gated(t0, t1, kind))
        if ticket != 0:
            group = d.i32(d.shr(d.block_x(), shift + BLOCKS))
            if is_last(ticket + group * 4, d.i32(1 << (shift + BLOCKS)), d.shared() + 8 * WARPS):
                i = d.i32(group * GROUP + d.thread())
                put(q + i, q_scales + (i >> 2), d.ld_f32(y + i * 4))

    return kernel
