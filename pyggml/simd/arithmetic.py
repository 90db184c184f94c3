"""Lane by lane: operators on equal vectors, fused multiply-add, comparisons, conversions between i32 and f32.

Owns what is exact or rounded once; approximated functions are in functions.py."""

import operator

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from pyggml.simd import codegen as cg
from pyggml.simd.vectors import Vec


def _register_operator(ops, codegen, floats=True, integers=True):
    class Same(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vec) and args[0] == args[1]:
                is_float = args[0].elem == "f32"
                if (is_float and floats) or (not is_float and integers):
                    return signature(args[0], *args)
            return None

    for op in ops:
        infer_global(op)(Same)
        lower_builtin(op, Vec, Vec)(lambda ctx, b, sig, a: codegen(b, sig.args[0], *a))


_register_operator([operator.add, operator.iadd], lambda b, v, x, y: b.fadd(x, y) if v.elem == "f32" else b.add(x, y))


_register_operator([operator.sub, operator.isub], lambda b, v, x, y: b.fsub(x, y) if v.elem == "f32" else b.sub(x, y))


_register_operator([operator.mul, operator.imul], lambda b, v, x, y: b.fmul(x, y) if v.elem == "f32" else b.mul(x, y))


_register_operator([operator.truediv], lambda b, v, x, y: b.fdiv(x, y), integers=False)


_register_operator([operator.and_, operator.iand], lambda b, v, x, y: b.and_(x, y), floats=False)


_register_operator([operator.or_, operator.ior], lambda b, v, x, y: b.or_(x, y), floats=False)


_register_operator([operator.xor], lambda b, v, x, y: b.xor(x, y), floats=False)


_register_operator([operator.lshift], lambda b, v, x, y: b.shl(x, y), floats=False)


_register_operator(
    [operator.rshift], lambda b, v, x, y: b.lshr(x, y) if v.elem[0] == "u" else b.ashr(x, y), floats=False
)


@intrinsic
def fma(tyctx, x, y, z):
    """x * y + z."""
    return x(x, y, z), lambda ctx, b, sig, a: cg.fma(b, *a)


@intrinsic
def maximum(tyctx, x, y):
    """Per lane; a NaN in x gives y."""
    return x(x, y), lambda ctx, b, sig, a: b.select(b.fcmp_ordered(">", a[0], a[1]), a[0], a[1])


@intrinsic
def minimum(tyctx, x, y):
    """Per lane; a NaN in x gives y."""
    return x(x, y), lambda ctx, b, sig, a: b.select(b.fcmp_ordered("<", a[0], a[1]), a[0], a[1])


@intrinsic
def absolute(tyctx, v):
    """|v| of f32 lanes."""

    def codegen(ctx, b, sig, a):
        bits = ir.VectorType(cg.I32, v.n)
        return b.bitcast(b.and_(b.bitcast(a[0], bits), cg.const(bits, [0x7FFFFFFF] * v.n)), a[0].type)

    return v(v), codegen


@intrinsic
def sqrt(tyctx, v):
    return v(v), lambda ctx, b, sig, a: cg.call(b, f"llvm.sqrt.{cg.suffix(a[0].type)}", a[0].type, [a[0]])


@intrinsic
def where_less(tyctx, x, y, yes, no):
    """Per lane: x < y ? yes : no (f32)."""
    return yes(x, y, yes, no), lambda ctx, b, sig, a: b.select(b.fcmp_ordered("<", a[0], a[1]), a[2], a[3])


@intrinsic
def where_equal(tyctx, x, y, yes, no):
    """Per lane: x == y ? yes : no (f32); NaN equals nothing."""
    return yes(x, y, yes, no), lambda ctx, b, sig, a: b.select(b.fcmp_ordered("==", a[0], a[1]), a[2], a[3])


@intrinsic
def to_f32(tyctx, v):
    """i32 lanes -> f32."""
    out = Vec("f32", v.n)
    return out(v), lambda ctx, b, sig, a: b.sitofp(a[0], out.ir)


@intrinsic
def truncate_to_i32(tyctx, v):
    """f32 lanes -> i32, towards zero. Lanes must be in range."""
    out = Vec("i32", v.n)
    return out(v), lambda ctx, b, sig, a: b.fptosi(a[0], out.ir)


@intrinsic
def round_even(tyctx, v):
    """f32 lanes to the nearest integer, halves to even, as f32. |lane| < 2^22."""

    def codegen(ctx, b, sig, a):
        magic = ir.Constant(a[0].type, [12582912.0] * v.n)  # 1.5 * 2^23: the sum has no bits below 1
        return b.fsub(b.fadd(a[0], magic), magic)

    return v(v), codegen


@intrinsic
def i32_to_i8(tyctx, v):
    """Low byte of each lane."""
    out = Vec("i8", v.n)
    return out(v), lambda ctx, b, sig, a: b.trunc(a[0], out.ir)


@intrinsic
def f32_bits(tyctx, v):
    """The same bits as i32 lanes."""
    out = Vec("i32", v.n)
    return out(v), lambda ctx, b, sig, a: b.bitcast(a[0], out.ir)


@intrinsic
def bits_f32(tyctx, v):
    """i32 lanes taken as the bits of f32."""
    out = Vec("f32", v.n)
    return out(v), lambda ctx, b, sig, a: b.bitcast(a[0], out.ir)


@intrinsic
def copy_sign(tyctx, x, sign):
    """|x| with the sign of `sign` (f32), zeros and NaNs too.

    Choose first, then give the sign: LLVM 22 swaps the operands of the one AVX-512 instruction that it makes of
    "`sign` itself where a condition holds, else this", if the lanes are integers before or after.
    """

    def codegen(ctx, b, sig, a):
        bits = ir.VectorType(cg.I32, x.n)
        m, s = cg.const(bits, [0x7FFFFFFF] * x.n), cg.const(bits, [-0x80000000] * x.n)
        both = b.or_(b.and_(b.bitcast(a[0], bits), m), b.and_(b.bitcast(a[1], bits), s))
        return b.bitcast(both, a[0].type)

    return x(x, sign), codegen


@intrinsic
def negative(tyctx, x):
    """-x, zeros and NaNs too."""
    return x(x), lambda ctx, b, sig, a: b.fneg(a[0])


def _lane_bits(condition):
    """-> f(x, y): an i64, bit i = whether the condition holds for lane i."""

    @intrinsic
    def bits_of(tyctx, x, y):
        def codegen(ctx, b, sig, a):
            return b.zext(b.bitcast(condition(b, a[0], a[1]), ir.IntType(x.n)), cg.I64)

        return types.int64(x, y), codegen

    return bits_of


equal_bits = _lane_bits(lambda b, x, y: b.fcmp_ordered("==", x, y))


nan_bits = _lane_bits(lambda b, x, y: b.fcmp_unordered("uno", x, y))


@intrinsic
def lowest_bit(tyctx, x):
    """Number of the lowest bit that is set; 64 for 0."""
    return types.int64(types.int64), lambda ctx, b, sig, a: b.cttz(a[0], cg.I1(0))


@intrinsic
def highest_bit(tyctx, x):
    """Number of the highest bit that is set; -1 for 0."""
    return types.int64(types.int64), lambda ctx, b, sig, a: b.sub(cg.I64(63), b.ctlz(a[0], cg.I1(0)))


@intrinsic
def where_nan(tyctx, x, y):
    """x where it is NaN, else y."""
    return x(x, y), lambda ctx, b, sig, a: b.select(b.fcmp_unordered("uno", a[0], a[0]), a[0], a[1])
