"""The integer dot product: sums of four adjacent 8-bit products, exact, lane by lane; the one thing that differs most
between CPU levels. Knows no block format."""

from llvmlite import ir
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.codegen import HAS_VNNI, LEVEL
from pyggml.simd.vectors import Vec


def _madd(b, acc, u, s, bits, maddubs, maddwd):
    """u8 x i8 through 16-bit pair sums, which must not overflow: u at most 127, or the products small."""
    i16, i32 = ir.VectorType(cg.I16, bits // 16), ir.VectorType(cg.I32, bits // 32)
    pairs = cg.call(b, maddubs, i16, [u, s])
    return b.add(acc, cg.call(b, maddwd, i32, [pairs, cg.const(i16, [1] * (bits // 16))]))


def _dot_generic(b, acc, u, s, unsigned):
    i32 = ir.VectorType(cg.I32, u.type.count // 4)
    for k in range(4):
        every = range(k, u.type.count, 4)
        x = cg.shuffle(b, u, None, every)
        x = b.zext(x, i32) if unsigned else b.sext(x, i32)
        acc = b.add(acc, b.mul(x, b.sext(cg.shuffle(b, s, None, every), i32)))
    return acc


def emit_dot(b, acc, u, s):
    if LEVEL == "vnni":
        return cg.call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc, u, s])
    if LEVEL == "v4":
        return _madd(b, acc, u, s, 512, "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512")
    if LEVEL == "v3":
        f = lambda x, y, z: _madd(b, x, y, z, 256, "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd")  # noqa: E731
        return cg.in_parts(b, 2, f, acc, u, s)
    if LEVEL == "v2":
        f = lambda x, y, z: _madd(b, x, y, z, 128, "llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd")  # noqa: E731
        return cg.in_parts(b, 4, f, acc, u, s)
    return _dot_generic(b, acc, u, s, unsigned=True)


def emit_dot_signed(b, acc, w, s):
    if HAS_VNNI:
        return emit_dot(b, acc, w, s)
    if LEVEL == "generic":
        return _dot_generic(b, acc, w, s, unsigned=False)
    zero = ir.Constant(w.type, None)  # |w| <= 128 times s with w's sign: two such products fit 16 bits
    negative = b.icmp_signed("<", w, zero)
    return emit_dot(b, acc, b.select(negative, b.sub(zero, w), w), b.select(negative, b.sub(zero, s), s))


@intrinsic
def dot_u8i8(tyctx, acc, u, s):
    """acc (i32 x 16) + sums of 4 adjacent u8 x i8 products of 64. Lanes of u are at most 63 below VNNI."""
    return acc(acc, u, s), lambda ctx, b, sig, a: emit_dot(b, *a)


SIGNED_BIAS = 128 if HAS_VNNI else 0
"""What `signed_weights` adds to each weight; the caller takes bias x (sum of the four activations) away again."""


@intrinsic
def signed_weights(tyctx, w):
    """i8 weights in the form in which `dot_weights` wants them: shifted to u8 with VNNI, as they are elsewhere."""
    out = Vec("u8", w.n)

    def codegen(ctx, b, sig, a):
        return b.xor(a[0], cg.const(a[0].type, [0x80] * w.n)) if HAS_VNNI else a[0]

    return out(w), codegen


@intrinsic
def dot_weights(tyctx, acc, w, s):
    """acc + sums of 4 adjacent products of `signed_weights` and i8 activations (-127 to 127)."""

    return acc(acc, w, s), lambda ctx, b, sig, a: emit_dot_signed(b, *a)
