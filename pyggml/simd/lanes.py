"""Making registers, moving lanes, and sums over lanes in a fixed order."""

from numba import types
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.vectors import Vec


def constant(elem, values):
    """-> f(): a vector of fixed values."""
    vec = Vec(elem, len(values))

    @intrinsic
    def make(tyctx):
        return vec(), lambda ctx, b, sig, a: cg.const(vec.ir, values)

    return make


def zeros(elem, n):
    return constant(elem, [0] * n)


zero_f32, zero_f32x8, zero_i32 = zeros("f32", 16), zeros("f32", 8), zeros("i32", 16)


@intrinsic
def splat_f32(tyctx, x):
    return Vec("f32", 16)(types.float32), lambda ctx, b, sig, a: cg.splat(b, a[0], 16)


@intrinsic
def splat_i32(tyctx, x):
    return Vec("i32", 16)(types.int32), lambda ctx, b, sig, a: cg.splat(b, a[0], 16)


def splat_like(elem, n):
    """-> f(x): a scalar repeated over n lanes of `elem`; x is f32 for "f32", else i64."""
    vec = Vec(elem, n)
    kind = types.float32 if elem == "f32" else types.int64

    @intrinsic
    def splat(tyctx, x):
        def codegen(ctx, b, sig, a):
            value = a[0] if elem == "f32" else b.trunc(a[0], vec.ir.element)
            return cg.splat(b, value, n)

        return vec(kind), codegen

    return splat


@intrinsic
def hsum(tyctx, v):
    """Sum of the lanes: upper half onto lower half until one is left."""
    out = types.float32 if v.elem == "f32" else types.int32
    return out(v), lambda ctx, b, sig, a: cg.tree(b, a[0], b.fadd if v.elem == "f32" else b.add)


@intrinsic
def hmax(tyctx, v):
    """Largest f32 lane; NaN lanes may be dropped."""

    def codegen(ctx, b, sig, a):
        return cg.tree(b, a[0], lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y))

    return types.float32(v), codegen


@intrinsic
def lane(tyctx, v, index):
    """One f32 lane."""
    return types.float32(v, types.int64), lambda ctx, b, sig, a: b.extract_element(a[0], a[1])


def shuffler(index):
    """-> f(v): lanes index[0], index[1] ... of v."""

    @intrinsic
    def shuffle(tyctx, v):
        out = Vec(v.elem, len(index))
        return out(v), lambda ctx, b, sig, a: cg.shuffle(b, a[0], None, index)

    return shuffle


@intrinsic
def join(tyctx, x, y):
    """The lanes of x, then those of y."""
    out = Vec(x.elem, 2 * x.n)
    return out(x, y), lambda ctx, b, sig, a: cg.join(b, list(a))


@intrinsic
def as_i8(tyctx, v):
    """u8 lanes taken as signed, and back."""
    out = Vec("i8" if v.elem == "u8" else "u8", v.n)
    return out(v), lambda ctx, b, sig, a: a[0]


@intrinsic
def widen(tyctx, v):
    """u8, i8, u16 or i16 lanes -> i32, of the same value."""
    out = Vec("i32", v.n)
    return out(v), lambda ctx, b, sig, a: (b.zext if v.elem[0] == "u" else b.sext)(a[0], out.ir)


@intrinsic
def low_u8(tyctx, v):
    """Low byte of each i32 lane."""
    out = Vec("u8", v.n)
    return out(v), lambda ctx, b, sig, a: b.trunc(a[0], out.ir)


@intrinsic
def select_part(tyctx, v, other, count):
    """Lanes below `count` of v, the number `other` in the rest."""

    def codegen(ctx, b, sig, a):
        return b.select(cg.mask(b, a[2], v.n), a[0], cg.splat(b, a[1], v.n))

    return v(v, types.float32, types.int64), codegen
