"""Register tiles: 16 rows by some columns at once, for matrix products and attention."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.dot import emit_dots, emit_dots_signed
from pyggml.simd.vectors import Tile


class TileOps:
    """Operations on tiles of `count` columns, the first of `width` that lie together. Column t's scalars lie at y + 4 t."""

    def __init__(self, count, width=0):
        width = width or count
        i32, f32 = Tile("i32", count), Tile("f32", count)
        f32v = ir.VectorType(cg.F32, 16)

        @intrinsic
        def zero(tyctx):
            return f32(), lambda ctx, b, sig, a: ir.Constant(f32.ir, None)

        @intrinsic
        def start(tyctx, y, shift):
            """i32 columns that begin at (i32 at y + 4 t) << shift."""

            def codegen(ctx, b, sig, a):
                by = cg.splat(b, b.trunc(a[1], cg.I32), 16)
                return cg.tile(b, [b.shl(cg.splat_from(b, a[0], 4 * t, cg.I32), by) for t in range(count)])

            return i32(types.uintp, types.int64), codegen

        @intrinsic
        def start_zero(tyctx):
            return i32(), lambda ctx, b, sig, a: ir.Constant(i32.ir, None)

        def dot4_with(dots):
            @intrinsic
            def steps(tyctx, acc, q, y):
                """acc + 16 products a lane: 16 rows x 16 weights (4 x 64 bytes at q) with the 16
                activations of each column, of which four lie together at y + 4 t, the next four a row of `width` columns on."""

                def codegen(ctx, b, sig, a):
                    v64 = ir.VectorType(cg.I8, 64)
                    at = [b.add(a[1], ir.Constant(a[1].type, 64 * i)) for i in range(4)]
                    w = [b.load(cg.ptr(b, p, v64), align=1) for p in at]
                    out = []
                    for t, x in enumerate(cg.columns(b, a[0], count)):
                        s = [b.bitcast(cg.splat_from(b, a[2], 4 * (width * i + t), cg.I32), v64) for i in range(4)]
                        out.append(dots(b, x, w, s))
                    return cg.tile(b, out)

                return acc(acc, types.uintp, types.uintp), codegen

            return steps

        @intrinsic
        def scale_add(tyctx, acc, sums, d, y):
            """acc + f32(sums) * (d * scale of each column at y)."""

            def codegen(ctx, b, sig, a):
                out = []
                for t, (x, n) in enumerate(zip(cg.columns(b, a[0], count), cg.columns(b, a[1], count), strict=True)):
                    out.append(cg.fma(b, b.sitofp(n, f32v), b.fmul(a[2], cg.splat_from(b, a[3], 4 * t, cg.F32)), x))
                return cg.tile(b, out)

            return acc(acc, sums, d, types.uintp), codegen

        @intrinsic
        def fma_columns(tyctx, acc, w, y):
            """acc + w * (f32 of each column at y)."""

            def codegen(ctx, b, sig, a):
                return cg.tile(
                    b,
                    [
                        cg.fma(b, a[1], cg.splat_from(b, a[2], 4 * t, cg.F32), x)
                        for t, x in enumerate(cg.columns(b, a[0], count))
                    ],
                )

            return acc(acc, w, types.uintp), codegen

        @intrinsic
        def load_scaled(tyctx, addr, stride, y):
            """Column t: 16 f32 at addr + t * stride, times the f32 at y + 4 t."""

            def codegen(ctx, b, sig, a):
                out, at = [], a[0]
                for t in range(count):
                    x = b.load(cg.ptr(b, at, f32v), align=1)
                    out.append(b.fmul(x, cg.splat_from(b, a[2], 4 * t, cg.F32)))
                    at = b.add(at, a[1])
                return cg.tile(b, out)

            return f32(types.uintp, types.uintp, types.uintp), codegen

        @intrinsic
        def store_columns(tyctx, acc, addr, stride, rows, columns):
            """Write lanes below `rows` of the columns below `columns`, column t at addr + t * stride."""

            def codegen(ctx, b, sig, a):
                acc, addr, stride, rows, columns = a
                mask = cg.mask(b, rows, 16)
                p = f32v.as_pointer()
                fnty = ir.FunctionType(ir.VoidType(), [f32v, p, cg.I32, mask.type])
                fn = cgutils.get_or_insert_function(b.module, fnty, "llvm.masked.store.v16f32.p0")
                for t, x in enumerate(cg.columns(b, acc, count)):
                    with b.if_then(b.icmp_signed("<", ir.Constant(cg.I64, t), columns)):
                        b.call(fn, [x, b.inttoptr(addr, p), cg.I32(1), mask])
                    addr = b.add(addr, stride)
                return ctx.get_dummy_value()

            return types.none(acc, types.uintp, types.uintp, types.int64, types.int64), codegen

        self.zero, self.start, self.start_zero = zero, start, start_zero
        self.dot4_u5i8 = dot4_with(lambda b, acc, w, s: emit_dots(b, acc, w, s, 31))
        self.dot4_u6i8 = dot4_with(lambda b, acc, w, s: emit_dots(b, acc, w, s, 63))
        self.dot4_u7i8 = dot4_with(lambda b, acc, w, s: emit_dots(b, acc, w, s, 127))
        self.dot4_weights = dot4_with(emit_dots_signed)
        self.scale_add, self.fma_columns = scale_add, fma_columns
        self.load_scaled, self.store_columns = load_scaled, store_columns
