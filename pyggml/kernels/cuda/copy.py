"""CPY CONT DUP: elements in order into another shape, type or stride, one thread an element."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES
from pyggml.kernels.cuda import encoders
from pyggml.kernels.cuda.blocks import READ, reader
from pyggml.kernels.cuda.launch_args import Extents, Place, entry, extents, place
from pyggml.kernels.cuda.layout import F32, FLOATS, I32, KINDS, THREADS, blocks, refuse, source
from pyggml.kernels.cuda.spec import Spec, i32, i64
from pyggml.quants import QUANTS

if TYPE_CHECKING:
    from pyggml.dtypes import GGMLType
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

MOVED = {t for t in SIZES if SIZES[t].block_size == 1} | set(QUANTS)


def why_not(node: Tensor) -> str | None:
    a = source(node, 0)
    if a.type == node.type:
        if a.type not in MOVED:
            return f"copying {a.type.name} is not supported"
    elif (
        {a.type, node.type} != {F32, I32}
        and not (a.type in READ and node.type in FLOATS)
        and not (a.type in FLOATS and node.type in encoders.KINDS)
    ):
        return f"copying {a.type.name} to {node.type.name} is not supported"
    return refuse(node, a)


def lower(builder: Builder, node: Tensor) -> None:
    a = source(node, 0)
    if a.type == node.type:
        move(builder, node, a)
        return
    n = node.nelements
    y, x, m = place(node), place(a), extents(a.ne)
    if node.type in encoders.KINDS:
        made = Extents(node.ne[0] // 32, node.ne[1], node.ne[2])
        args = ConvertArgs(y=y, n=made, a=x, m=m, total=n // 32, ky=encoders.KINDS[node.type], ka=KINDS[a.type])
        builder.launch(Spec("copy", "quantize"), (blocks(n // 32, THREADS // 32),), THREADS, args)
    elif SIZES[a.type].block_size > 1:
        family, (kind, table) = reader(builder, a.type)
        read = DequantizeArgs(
            y=y, n=extents(node.ne), a=x, m=m, total=n, ky=KINDS[node.type], ka=kind, table=table,
        )  # fmt: skip
        builder.launch(Spec("copy", "dequantize", (family,)), (blocks(n),), THREADS, read)
    else:
        args = ConvertArgs(y=y, n=extents(node.ne), a=x, m=m, total=n, ky=KINDS[node.type], ka=KINDS[a.type])
        builder.launch(Spec("copy", "convert"), (blocks(n),), THREADS, args)


def unit_of(dtype: GGMLType, *tensors: Tensor) -> int:
    """The largest of 8, 4, 2, 1 bytes of which a block, and every stride, is a multiple."""
    common = gcd(SIZES[dtype].type_size, 8)
    for t in tensors:
        for b in (*t.nb, t.data):
            common = gcd(common, b)
    return common


def move(builder: Builder, node: Tensor, a: Tensor) -> None:
    """Bytes of the same type: each block in pieces of `unit` bytes."""
    size = SIZES[a.type]
    unit = unit_of(a.type, node, a)
    per = size.type_size // unit
    ne, me = (Extents(t.ne[0] // size.block_size, t.ne[1], t.ne[2]) for t in (node, a))
    n = node.nelements // size.block_size * per
    args = MoveKernelArgs(y=place(node), n=ne, a=place(a), m=me, total=n, per=per, unit=unit)
    builder.launch(Spec("copy", "move_kernel"), (blocks(n),), THREADS, args)


class MoveKernelArgs(NamedTuple):
    y: Place
    n: Extents
    a: Place
    m: Extents
    total: i32
    per: i32
    unit: i32


def move_kernel():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import moves, places

    place, move = places(), moves()

    @entry(MoveKernelArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, n0, n1, n2, a, a0, a1, a2, a3, m0, m1, m2, total, per, unit):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            block = d.udiv(i, per)
            inside = (i - block * per) * unit
            i0, i1, i2, i3 = place(block, n0, n1, n2)
            j0, j1, j2, j3 = place(block, m0, m1, m2)
            to = y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3 + inside
            at = a + j0 * a0 + j1 * a1 + j2 * a2 + j3 * a3 + inside
            move(to, at, unit)

    return kernel


class ConvertArgs(NamedTuple):
    y: Place
    n: Extents
    a: Place
    m: Extents
    total: i32
    ky: i32
    ka: i32


def convert():
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places

    load, store = access()
    place = places()

    @entry(ConvertArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, n0, n1, n2, a, a0, a1, a2, a3, m0, m1, m2, total, ky, ka):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            j0, j1, j2, j3 = place(i, m0, m1, m2)
            to = y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3
            at = a + j0 * a0 + j1 * a1 + j2 * a2 + j3 * a3
            if ky == 3:
                x = d.ld_f32(at)
                fits = x >= d.f32(-2147483648.0) and x < d.f32(2147483648.0)
                d.st_i32(to, d.truncate_i32(x) if fits else d.i32(-2147483648))  # the rest is -2^31, as on x86
            elif ka == 3:
                d.st_f32(to, d.f32(d.ld_i32(at)))
            else:
                store(to, ky, load(at, ka))

    return kernel


class DequantizeArgs(NamedTuple):
    y: Place
    n: Extents
    a: Place
    m: Extents
    total: i32
    ky: i32
    ka: i32
    table: i64


def dequantize(family):
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.blocks import element
    from pyggml.kernels.cuda.convert import access, places

    _, store = access()
    place = places()
    value = element(family)

    @entry(DequantizeArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, n0, n1, n2, a, a0, a1, a2, a3, m0, m1, m2, total, ky, ka, table):
        i = d.i32(d.block_x() * d.threads() + d.thread())
        if i < total:
            i0, i1, i2, i3 = place(i, n0, n1, n2)
            j0, j1, j2, j3 = place(i, m0, m1, m2)
            x = value(a + j1 * a1 + j2 * a2 + j3 * a3, j0, a0, ka, table)
            store(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, ky, x)

    return kernel


def quantize():
    """Values become blocks, a warp each."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.convert import access, places
    from pyggml.kernels.cuda.encoders import encoder

    load, _ = access()
    place, encode = places(), encoder()

    @entry(ConvertArgs, THREADS)
    def kernel(y, y0, y1, y2, y3, n0, n1, n2, a, a0, a1, a2, a3, m0, m1, m2, total, ky, ka):
        warps = d.threads() >> 5
        block = d.i32(d.block_x() * warps + (d.thread() >> 5))
        while block < total:
            i0, i1, i2, i3 = place(block, n0, n1, n2)
            j0, j1, j2, j3 = place(d.i32(block * 32 + (d.thread() & 31)), m0, m1, m2)
            x = load(a + j0 * a0 + j1 * a1 + j2 * a2 + j3 * a3, ka)
            encode(y + i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3, x, ky)
            block = d.i32(block + d.blocks_x() * warps)

    return kernel
