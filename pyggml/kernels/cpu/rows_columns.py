"""Elements of 4 bytes moved as they are between two layouts of one shape, where rows are short or become columns. Knows no
op and no meaning.

Owns both kernels and when they are better than moving run by run (copy.py): for each 16 rows an address is computed once.
"""

from __future__ import annotations

from typing import NamedTuple

from pyggml.dtypes import SIZES
from pyggml.jit import Spec
from pyggml.tensor import Tensor

ROWS = 16
PIECE = 512
"""Elements of a row that a part moves at least, where rows become columns."""


class RowsArgs(NamedTuple):
    """blocks: of 16 rows, in dimension 1. pieces: that a row is cut into."""

    blocks: int
    pieces: int


def kernel_for(target: Tensor, source: Tensor) -> tuple[Spec, RowsArgs] | None:
    """What moves `source` to `target`, of the same type and shape; None: neither kernel is for them."""
    size, (n0, n1, _, _) = SIZES[source.type], source.ne
    if size.block_size != 1 or size.type_size != 4 or n1 < 2:
        return None
    blocks = (n1 + ROWS - 1) // ROWS
    if source.nb[1] == 4 and source.nb[0] != 4:
        return Spec("rows_columns", "columns"), RowsArgs(blocks, (n0 + PIECE - 1) // PIECE)
    dense = all(t.nb[0] == 4 or n0 == 1 for t in (target, source))
    together = all(t.nb[1] == 4 * n0 for t in (target, source))
    return (Spec("rows_columns", "rows"), RowsArgs(blocks, 1)) if dense and n0 <= 16 and not together else None


def columns():
    """-> kernel: 16 neighbouring elements of dimension 1 are read at once, and written to 16 rows. Takes RowsArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U, load, load_part = v.U, v.loader("i32", 16), v.part_loader("i32", 16)
    blocks_of, pieces_of = step_args.readers(RowsArgs)
    n0, n1, n2, n3 = (record.field("src0.ne", i) for i in range(4))
    d, a, nbd, nba, nbd1 = (
        record.element("dst"), record.element("src0"), record.field("dst.nb"), record.field("src0.nb"),
        record.field("dst.nb", 1),
    )  # fmt: skip

    def kernel(step, ith, nth, thread):
        blocks, pieces, n = blocks_of(step), pieces_of(step), n0(step)
        length = (n + pieces - 1) // pieces
        sd, sa, rd = nbd(step), nba(step), nbd1(step)
        count = blocks * pieces * n2(step) * n3(step)
        for item in range(count * ith // nth, count * (ith + 1) // nth):
            i1, rest = item % blocks * 16, item // blocks
            begin, outer = rest % pieces * length, rest // pieces
            i2, i3 = outer % n2(step), outer // n2(step)
            rows = min(16, n1(step) - i1)
            to, source = d(step, 0, i1, i2, i3), a(step, 0, i1, i2, i3)
            for i in range(begin, min(n, begin + length)):
                if rows == 16:
                    v.store_strided(to + U(i * sd), load(source + U(i * sa)), rd, 16)
                else:
                    v.store_strided(to + U(i * sd), load_part(source + U(i * sa), rows), rd, rows)

    return kernel


def rows():
    """-> kernel: rows of at most 16 elements. Takes RowsArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U, load_part = v.U, v.part_loader("i32", 16)
    blocks_of = step_args.readers(RowsArgs).blocks
    n0, n1, n2, n3 = (record.field("src0.ne", i) for i in range(4))
    d, a, rd, ra = record.element("dst"), record.element("src0"), record.field("dst.nb", 1), record.field("src0.nb", 1)

    def kernel(step, ith, nth, thread):
        blocks, n, sd, sa = blocks_of(step), n0(step), rd(step), ra(step)
        count = blocks * n2(step) * n3(step)
        for item in range(count * ith // nth, count * (ith + 1) // nth):
            i1, outer = item % blocks * 16, item // blocks
            i2, i3 = outer % n2(step), outer // n2(step)
            to, source = d(step, 0, i1, i2, i3), a(step, 0, i1, i2, i3)
            for i in range(min(16, n1(step) - i1)):
                v.store_part(to + U(i * sd), load_part(source + U(i * sa), n), n)

    return kernel
