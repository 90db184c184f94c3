"""Pieces of quantised blocks: nibbles, single bits, bytes, and the transposition of 16 rows."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyggml.jit import device
from pyggml.simd import codegen as cg
from pyggml.simd.codegen import U
from pyggml.simd.vectors import Vec


def nibbles(offsets):
    """-> f(addr): for one or two blocks, whose 16 bytes of nibbles lie at `offsets`: u8 x 64, in each half of 32 first
    the low nibbles, then the high ones. With one block the upper half is zero."""
    out = Vec("u8", 64)
    order = [*range(16), *range(16)]

    @intrinsic
    def unpack(tyctx, addr):
        def codegen(ctx, b, sig, a):
            v16, words = ir.VectorType(cg.I8, 16), ir.VectorType(cg.I32, 16)
            x = [b.load(cg.ptr(b, b.add(a[0], ir.Constant(a[0].type, o)), v16), align=1) for o in offsets]
            if len(x) == 1:
                x.append(ir.Constant(v16, None))
            twice = b.bitcast(cg.shuffle(b, x[0], x[1], order + [16 + i for i in order]), words)
            shifted = b.lshr(twice, cg.const(words, ([0] * 4 + [4] * 4) * 2))
            return b.bitcast(b.and_(shifted, cg.const(words, [0x0F0F0F0F] * 16)), out.ir)

        return out(types.uintp), codegen

    return unpack


def bits(offsets, value):
    """-> f(addr): for one or two words of 32 bits at `offsets`: u8 x 64, `value` where the bit is set, else 0."""
    out = Vec("u8", 64)

    @intrinsic
    def unpack(tyctx, addr):
        def codegen(ctx, b, sig, a):
            word = ir.Constant(cg.I64, 0)
            for i, o in enumerate(offsets):
                w = b.zext(b.load(cg.ptr(b, b.add(a[0], ir.Constant(a[0].type, o)), cg.I32), align=1), cg.I64)
                word = b.or_(word, b.shl(w, ir.Constant(cg.I64, 32 * i)))
            mask = b.bitcast(word, ir.VectorType(cg.I1, 64))
            return b.select(mask, cg.const(out.ir, [value] * 64), ir.Constant(out.ir, None))

        return out(types.uintp), codegen

    return unpack


def bytes_at(offsets):
    """-> f(addr): for one or two runs of 32 bytes at `offsets`: i8 x 64. With one the upper half is zero."""
    out = Vec("i8", 64)

    @intrinsic
    def unpack(tyctx, addr):
        def codegen(ctx, b, sig, a):
            v32 = ir.VectorType(cg.I8, 32)
            x = [b.load(cg.ptr(b, b.add(a[0], ir.Constant(a[0].type, o)), v32), align=1) for o in offsets]
            if len(x) == 1:
                x.append(ir.Constant(v32, None))
            return cg.join(b, x)

        return out(types.uintp), codegen

    return unpack


def transposer(unpack, keep=16):
    """-> f(dst, src, stride, last): unpack(src + i * stride) for rows i = 0 to 15 (row `last` for those beyond it),
    taken as 16 lanes of 32 bits each; lane j of all rows is stored at dst + 64 j, for j < `keep`."""

    @intrinsic
    def store16(tyctx, dst, r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15):
        def codegen(ctx, b, sig, a):
            words = ir.VectorType(cg.I32, 16)
            for j, column in enumerate(cg.transpose(b, [b.bitcast(x, words) for x in a[1:]])[:keep]):
                at = b.add(a[0], ir.Constant(a[0].type, 64 * j))
                b.store(column, cg.ptr(b, at, words), align=1)
            return ctx.get_dummy_value()

        return types.none(types.uintp, *[r0] * 16), codegen

    @device
    def transpose(dst, src, stride, last):
        # row addresses: at most `last` strides from the first, so that nothing is read behind the last row
        s0 = src
        s1 = src + stride * U(min(1, last))
        s2 = src + stride * U(min(2, last))
        s3 = src + stride * U(min(3, last))
        s4 = src + stride * U(min(4, last))
        s5 = src + stride * U(min(5, last))
        s6 = src + stride * U(min(6, last))
        s7 = src + stride * U(min(7, last))
        s8 = src + stride * U(min(8, last))
        s9 = src + stride * U(min(9, last))
        s10 = src + stride * U(min(10, last))
        s11 = src + stride * U(min(11, last))
        s12 = src + stride * U(min(12, last))
        s13 = src + stride * U(min(13, last))
        s14 = src + stride * U(min(14, last))
        s15 = src + stride * U(min(15, last))
        store16(
            dst, unpack(s0), unpack(s1), unpack(s2), unpack(s3), unpack(s4), unpack(s5), unpack(s6), unpack(s7),
            unpack(s8), unpack(s9), unpack(s10), unpack(s11), unpack(s12), unpack(s13), unpack(s14), unpack(s15),
        )  # fmt: skip

    return transpose
