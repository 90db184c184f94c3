"""Matrix-vector products: each row of weights, read once from the GGUF layout, with one or a few rows of activations.

Owns the loop over rows and columns, one for all types; the product of a row is row_dots.py's. Knows matrix-matrix products no
more than their operands' shapes. One row is one stream of memory.
"""

from __future__ import annotations

from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cpu.product_args import ProductArgs
from pyggml.kernels.cpu.row_dots import row_dots

MOST = 4
"""Columns that a row is met with at once, its weights unpacked once for all of them."""


def together(columns: int) -> tuple[int, ...]:
    """Of the arguments of `rows` those for so many columns."""
    return () if columns == 1 else (MOST,)


def rows(name, most=1):
    """-> kernel: dst (n, m, batch) = src0 (k, n, batch or a divisor of it) . activations, for few columns m.

    Block types read planes in scratch; float types read src1. Takes ProductArgs.
    The threads share the rows of each matrix; every column of a row is computed while the row is in cache, `most` of them at
    once. A column is summed in the same order whatever `most` is.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    dtype = GGMLType[name]
    is_block = SIZES[dtype].block_size > 1
    dot, dot_two, dot_all = row_dots(dtype, 1), row_dots(dtype, min(2, most)), row_dots(dtype, most)
    ne0, n1 = record.field("src0.ne"), record.field("src0.ne", 1)
    r2, r3 = record.field("src0.ne", 2), record.field("src0.ne", 3)
    m1, m2, m3 = (record.field("dst.ne", i) for i in (1, 2, 3))
    weights, output, plain = record.element("src0"), record.element("dst"), record.element("src1")
    row_bytes, row_out = record.field("src0.nb", 1), record.field("dst.nb", 1)
    row_plain = record.field("src1.nb", 1)
    planes_at, aborted = record.field("scratch"), record.aborted()
    args = step_args.readers(ProductArgs)
    blocks, padded, plane_bytes = args.length, args.padded, args.column_bytes
    several = most > 1

    def kernel(step, ith, nth, thread):
        length = blocks(step) if is_block else ne0(step)
        pad = padded(step)
        columns = m1(step)
        first, last = n1(step) * ith // nth, n1(step) * (ith + 1) // nth
        for matrix in range(m2(step) * m3(step)):
            if aborted(step):
                return
            i2, i3 = matrix % m2(step), matrix // m2(step)
            x = weights(step, 0, first, i2 // (m2(step) // r2(step)), i3 // (m3(step) // r3(step)))
            out = output(step, first, 0, i2, i3)
            if is_block:
                y0 = planes_at(step) + U(matrix * columns * plane_bytes(step))
                y_step = U(plane_bytes(step))
            else:
                y0 = plain(step, 0, 0, i2, i3)
                y_step = U(row_plain(step))
            o_step = U(row_out(step))
            for _ in range(first, last):
                y = y0
                o = out
                left = columns
                if several:
                    while left >= most:
                        dot_all(length, pad, x, y, y_step, o, o_step)
                        y += y_step * U(most)
                        o += o_step * U(most)
                        left -= most
                    while left >= 2:
                        dot_two(length, pad, x, y, y_step, o, o_step)
                        y += y_step * U(2)
                        o += o_step * U(2)
                        left -= 2
                while left > 0:
                    dot(length, pad, x, y, y_step, o, o_step)
                    y += y_step
                    o += o_step
                    left -= 1
                x += U(row_bytes(step))
                out += U(4)

    return kernel
