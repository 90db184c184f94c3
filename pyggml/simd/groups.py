"""Register tiles for a few columns: vectors of 16 lanes that several columns share, each met with every column's own
vector or number. Knows neither keys nor values."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.codegen import LEVEL
from pyggml.simd.vectors import Tile

ROWS = {"vnni": (8, 4, 4, 4), "v4": (8, 4, 4, 4), "v3": (4, 2, 1, 1)}.get(LEVEL, (2, 1, 1, 1))
"""By columns: how many rows fit the registers, with one sum each."""


class ColumnOps:
    """Operations on tiles of `columns` x `rows` sums of 16 lanes; sum r of column c is number c * rows + r.

    A column's own vectors, numbers and results lie `stride` bytes behind those of the column before.
    """

    def __init__(self, columns, rows):
        sums = Tile("f32", columns * rows)
        count = columns * rows
        v16 = ir.VectorType(cg.F32, 16)

        @intrinsic
        def zero(tyctx):
            return sums(), lambda ctx, b, sig, a: ir.Constant(sums.ir, None)

        def at(b, base, stride, c):
            return b.add(base, b.mul(stride, ir.Constant(stride.type, c)))

        def fma_with(r, other, hidden=False):
            """-> f(acc, x, base, stride): sum r of each column + x * other(column); `hidden`: not where that is 0."""

            @intrinsic
            def step(tyctx, acc, x, base, stride):
                def codegen(ctx, b, sig, a):
                    tile, x, base, stride = a
                    for c in range(columns):
                        old = b.extract_value(tile, c * rows + r)
                        by = other(b, at(b, base, stride, c))
                        new = cg.fma(b, x, by, old)
                        if hidden:
                            new = b.select(b.fcmp_ordered("==", by, ir.Constant(by.type, None)), old, new)
                        tile = b.insert_value(tile, new, c * rows + r)
                    return tile

                return acc(acc, x, types.uintp, types.uintp), codegen

            return step

        def vector(b, address):
            return b.load(cg.ptr(b, address, v16), align=4)

        def number(b, address):
            return cg.splat(b, b.load(cg.ptr(b, address, cg.F32), align=4), 16)

        @intrinsic
        def put_totals(tyctx, addr, acc, stride):
            """The sum over each one's lanes, in a fixed tree: those of column c at addr + c * stride, f32[rows]."""

            def codegen(ctx, b, sig, a):
                addr, acc, stride = a
                vectors = cg.columns(b, acc, count)
                if LEVEL in ("v4", "vnni"):
                    totals = _totals(b, vectors)
                else:
                    totals = ir.Constant(ir.VectorType(cg.F32, count), ir.Undefined)
                    for i, x in enumerate(vectors):
                        totals = b.insert_element(totals, cg.tree(b, x, b.fadd), cg.I32(i))
                for c in range(columns):
                    own = cg.shuffle(b, totals, None, range(c * rows, (c + 1) * rows))
                    b.store(own, cg.ptr(b, at(b, addr, stride, c), own.type), align=4)
                return ctx.get_dummy_value()

            return types.none(types.uintp, acc, types.uintp), codegen

        @intrinsic
        def put(tyctx, addr, acc, stride, vectors):
            """The first so many sums of each column, as they are: those of column c from addr + c * stride on."""

            def codegen(ctx, b, sig, a):
                addr, acc, stride, vectors = a
                for r in range(rows):
                    with b.if_then(b.icmp_signed("<", ir.Constant(cg.I64, r), vectors)):
                        for c in range(columns):
                            to = b.add(at(b, addr, stride, c), ir.Constant(addr.type, 64 * r))
                            b.store(b.extract_value(acc, c * rows + r), cg.ptr(b, to, v16), align=4)
                return ctx.get_dummy_value()

            return types.none(types.uintp, acc, types.uintp, types.int64), codegen

        self.zero, self.put_totals, self.put = zero, put_totals, put
        self.fma_vectors = [fma_with(r, vector) for r in range(rows)]
        self.fma_numbers = [fma_with(r, number) for r in range(rows)]
        self.fma_numbers_seen = [fma_with(r, number, hidden=True) for r in range(rows)]


def _totals(b, vectors):
    """Lane i: the sum over the lanes of vector i, of up to 16. Each step lays halves of two vectors side by side and adds
    them: halves of the register, of those, then of its 128-bit pieces, so that each shuffle is one instruction."""
    x = vectors + [ir.Constant(vectors[0].type, None)] * (16 - len(vectors))

    def fold(pairs, piece, first, second):
        """Pieces of `piece` lanes, numbered through both vectors of a pair, that become the two summands."""
        lanes = [[piece * p + i for p in which for i in range(piece)] for which in (first, second)]
        return [b.fadd(*(cg.shuffle(b, p, q, index) for index in lanes)) for p, q in pairs]

    x = fold([(x[i + 8 * j], x[i + 8 * j + 4]) for i in range(4) for j in range(2)], 4, (0, 1, 4, 5), (2, 3, 6, 7))
    x = fold([(x[2 * i], x[2 * i + 1]) for i in range(4)], 4, (0, 2, 4, 6), (1, 3, 5, 7))
    within = [i + 4 * j + k for j in range(4) for i in (0, 1) for k in (0, 16)]
    x = fold([(x[0], x[1]), (x[2], x[3])], 1, within, [i + 2 for i in within])
    within = [i + 4 * j + k for j in range(4) for k in (0, 16) for i in (0, 1)]
    return fold([(x[0], x[1])], 1, within, [i + 2 for i in within])[0]
