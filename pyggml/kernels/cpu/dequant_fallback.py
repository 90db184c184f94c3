"""Types that only unpack: their rows become F32 in work memory, a few at a time, and what is computed then is for F32.

Owns that detour, for rows that are copied or chosen and for products: formats.DEQUANTISED_FIRST. All kernels here call
`dequant.decode` of the type, so that a type is one small kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import CALL, Spec
from pyggml.kernels.cpu.product_args import ProductArgs
from pyggml.steps import STEP

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

ROWS = 16
RECORD = STEP.itemsize


def decoder(dtype: GGMLType) -> Spec:
    return Spec("dequant", "decode", (dtype.name,), CALL)


def unpack(builder: Builder, to: Tensor, a: Tensor) -> None:
    """A step that puts the elements of `a` into `to`, F32 and contiguous, in order."""
    assert to.type == GGMLType.F32 and to.is_contiguous
    size = SIZES[a.type]
    args = UnpackArgs(a.ne[0] // size.block_size, a.ne[0] * 4)
    builder.step(Spec("dequant_fallback", "unpack_rows"), to, (a,), args=args, calls=[decoder(a.type)])


class UnpackArgs(NamedTuple):
    """row_blocks: blocks a row. row_bytes: bytes of one that is unpacked."""

    row_blocks: int
    row_bytes: int


def unpack_rows():
    """-> kernel: the rows of src0 behind each other at dst. Takes UnpackArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    rows, row, to = record.rows("src0"), record.row("src0", "src0"), record.field("dst.data")
    blocks, size = step_args.readers(UnpackArgs)
    decode = record.field("calls")

    def kernel(step, ith, nth, thread):
        count = rows(step)
        for r in range(count * ith // nth, count * (ith + 1) // nth):
            v.call_kernel(decode(step), row(step, r), v.np.int64(to(step) + U(r * size(step))), blocks(step))

    return kernel


class GetRowsArgs(NamedTuple):
    """wide: as indices.NumberArgs has it. row_blocks: blocks a row."""

    row_blocks: int
    wide: int = 0


def get_rows():
    """-> kernel: row r of dst is row src1[r] of src0. Takes GetRowsArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import indices, record, step_args

    args = step_args.readers(GetRowsArgs)
    bad, choose = indices.numbers_are_bad(args.wide), indices.chosen()
    limit, total = record.field("src0.ne", 1), record.rows("dst")
    d, a, number = record.row("dst"), record.element("src0"), record.element("src1")
    ne1, ne2 = record.field("dst.ne", 1), record.field("dst.ne", 2)
    blocks, decode = args.row_blocks, record.field("calls")

    def kernel(step, ith, nth, thread):
        if bad(step, limit(step), ith):
            return
        count = total(step)
        for r in range(count * ith // nth, count * (ith + 1) // nth):
            i1, i2, i3 = r % ne1(step), r // ne1(step) % ne2(step), r // ne1(step) // ne2(step)
            which = choose(step, number(step, i1, i2, i3, 0), False, limit(step))
            if which < 0:
                return
            v.call_kernel(decode(step), a(step, 0, which, i2, i3), v.np.int64(d(step, r)), blocks(step))

    return kernel


def product_bytes(k: int, more: int) -> int:
    """Work memory of one thread of `product`: a record, rows of k elements, and what the kernel for F32 needs."""
    return RECORD + 4 * ROWS * k + more


def product():
    """-> kernel: dst = src0 . src1 as matvec.rows or tile.rows have it. calls: (free), the decoder, that kernel for F32.

    scratch: of each thread `product_bytes`; the panels. Takes ProductArgs, as that kernel does.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    n0, n1, r2, r3 = (record.field("src0.ne", i) for i in range(4))
    m2, m3, stride = record.field("dst.ne", 2), record.field("dst.ne", 3), record.field("src0.nb", 1)
    weights, plain, output = record.element("src0"), record.element("src1"), record.element("dst")
    work, panels, room = record.field("scratch", 0), record.field("scratch", 1), record.field("thread_bytes")
    args = step_args.readers(ProductArgs)
    each, size, blocks = args.panels_each, args.column_bytes, args.row_blocks
    decode, multiply = record.field("calls", 1), record.field("calls", 2)
    copy, put = record.copier(("src0.ne", 2), ("src0.ne", 3), ("dst.ne", 2), ("dst.ne", 3)), record.writer
    put_x, put_rows, put_bytes = put("src0.data"), put("src0.ne", 1), put("src0.nb", 1)
    put_y, put_out, put_work, put_panels = put("src1.data"), put("dst.data"), put("scratch"), put("scratch", 1)

    def kernel(step, ith, nth, thread):
        k = n0(step)
        own = work(step) + U(thread * room(step))
        unpacked = own + U(RECORD)
        copy(step, own)
        put_x(own, unpacked)
        put_bytes(own, 4 * k)
        put_work(own, unpacked + U(4 * ROWS * k))
        groups = (n1(step) + ROWS - 1) // ROWS
        total = groups * m2(step) * m3(step)
        for w in range(total * ith // nth, total * (ith + 1) // nth):
            matrix, first = w // groups, w % groups * ROWS
            i2, i3 = matrix % m2(step), matrix // m2(step)
            x = weights(step, 0, first, i2 // (m2(step) // r2(step)), i3 // (m3(step) // r3(step)))
            have = min(ROWS, n1(step) - first)
            for r in range(have):
                v.call_kernel(decode(step), x + U(r * stride(step)), v.np.int64(unpacked + U(4 * k * r)), blocks(step))
            put_rows(own, have)
            put_y(own, plain(step, 0, 0, i2, i3))
            put_panels(own, panels(step) + U(matrix * each(step) * size(step)))
            put_out(own, output(step, first, 0, i2, i3))
            v.call_step(multiply(step), own, 0, 1, 0)

    return kernel
