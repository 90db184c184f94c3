"""The integer dot product: sums of four adjacent 8-bit products, exact, lane by lane; the one thing that differs most
between CPU levels."""

from llvmlite import ir
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.codegen import HAS_VNNI, LEVEL
from pyggml.simd.vectors import Vec

# of each level without VNNI: bits a register, u8 x i8 -> sums of two in i16, i16 x i16 -> sums of two in i32, sign
_NAMES = {
    "v4": (512, "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512", None),
    "v3": (256, "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.psign.b"),
    "v2": (128, "llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd", "llvm.x86.ssse3.psign.b.128"),
}


def _madd(b, acc, us, ss):
    """acc + u8 x i8 through sums of pairs in 16 bits, of all steps together: the caller knows that they fit."""
    bits, maddubs, maddwd, _ = _NAMES[LEVEL]
    i16, i32 = ir.VectorType(cg.I16, bits // 16), ir.VectorType(cg.I32, bits // 32)
    pairs = None
    for u, s in zip(us, ss, strict=True):
        more = cg.call(b, maddubs, i16, [u, s])
        pairs = more if pairs is None else b.add(pairs, more)
    return b.add(acc, cg.call(b, maddwd, i32, [pairs, cg.const(i16, [1] * (bits // 16))]))


def _dot_generic(b, acc, u, s, unsigned):
    i32 = ir.VectorType(cg.I32, u.type.count // 4)
    for k in range(4):
        every = range(k, u.type.count, 4)
        x = cg.shuffle(b, u, None, every)
        x = b.zext(x, i32) if unsigned else b.sext(x, i32)
        acc = b.add(acc, b.mul(x, b.sext(cg.shuffle(b, s, None, every), i32)))
    return acc


def emit_dots(b, acc, us, ss, largest):
    """acc + several u8 x i8 products a lane, one after the other. Lanes of us are at most `largest`, those of ss 127 in
    size. Exact: as many steps share their 16-bit sums as fit."""
    if LEVEL == "vnni":
        for u, s in zip(us, ss, strict=True):
            acc = cg.call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc, u, s])
        return acc
    if LEVEL == "generic":
        for u, s in zip(us, ss, strict=True):
            acc = _dot_generic(b, acc, u, s, unsigned=True)
        return acc
    fit = max(1, 32767 // (2 * 127 * largest))
    parts = 512 // _NAMES[LEVEL][0]
    for i in range(0, len(us), fit):
        some_us, some_ss = us[i : i + fit], ss[i : i + fit]
        n = len(some_us)
        f = lambda x, *o, n=n: _madd(b, x, o[:n], o[n:])  # noqa: E731
        acc = cg.in_parts(b, parts, f, acc, *some_us, *some_ss)
    return acc


def emit_dots_signed(b, acc, ws, ss):
    """The same of weights in the form of `signed_weights`, -128 to 127 where there is no VNNI."""
    if HAS_VNNI:
        return emit_dots(b, acc, ws, ss, 255)
    for w, s in zip(ws, ss, strict=True):
        if LEVEL == "generic":
            acc = _dot_generic(b, acc, w, s, unsigned=False)
        else:  # |w| times s with w's sign
            zero = ir.Constant(w.type, None)
            negative = b.icmp_signed("<", w, zero)
            acc = emit_dots(b, acc, [b.select(negative, b.sub(zero, w), w)], [_with_sign(b, s, w, negative)], 128)
    return acc


def _with_sign(b, s, w, negative):
    bits, _, _, sign = _NAMES[LEVEL]
    if sign is None:
        return b.select(negative, b.sub(ir.Constant(s.type, None), s), s)
    part = ir.VectorType(cg.I8, bits // 8)
    return cg.in_parts(b, 512 // bits, lambda x, y: cg.call(b, sign, part, [x, y]), s, w)


@intrinsic
def dot_u8i8(tyctx, acc, u, s):
    """acc (i32 x 16) + sums of 4 adjacent u8 x i8 products of 64. Lanes of u are at most 127 below VNNI."""
    return acc(acc, u, s), lambda ctx, b, sig, a: emit_dots(b, a[0], [a[1]], [a[2]], 127)


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

    return acc(acc, w, s), lambda ctx, b, sig, a: emit_dots_signed(b, a[0], [a[1]], [a[2]])
