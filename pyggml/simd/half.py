"""Half precision: f16 and bf16 to f32 and back, singly, in registers, and gathered from blocks that lie apart."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.vectors import Vec


@intrinsic
def f16_to_f32(tyctx, v):
    """u16 lanes (bits of f16) -> f32 lanes."""
    out = Vec("f32", v.n)
    return out(v), lambda ctx, b, sig, a: cg.f16_to_f32(b, a[0])


@intrinsic
def f32_to_f16(tyctx, v):
    """f32 lanes -> u16 lanes (bits of f16), to the nearest, halves to even."""
    return Vec("u16", v.n)(v), lambda ctx, b, sig, a: cg.f32_to_f16(b, a[0])


@intrinsic
def bf16_to_f32(tyctx, v):
    """u16 lanes (upper half of an f32) -> f32 lanes."""
    out = Vec("f32", v.n)

    def codegen(ctx, b, sig, a):
        i = ir.VectorType(cg.I32, v.n)
        return b.bitcast(b.shl(b.zext(a[0], i), cg.const(i, [16] * v.n)), out.ir)

    return out(v), codegen


@intrinsic
def f32_to_bf16(tyctx, v):
    """f32 lanes -> u16 lanes, to the nearest, halves to even; NaNs become quiet (ggml-impl.h: ggml_compute_fp32_to_bf16)."""
    out = Vec("u16", v.n)

    def codegen(ctx, b, sig, a):
        i = ir.VectorType(cg.I32, v.n)

        def c(x):
            return cg.const(i, [x] * v.n)

        w = b.bitcast(a[0], i)
        rounded = b.lshr(b.add(w, b.add(c(0x7FFF), b.and_(b.lshr(w, c(16)), c(1)))), c(16))
        nan = b.icmp_signed(">", b.and_(w, c(0x7FFFFFFF)), c(0x7F800000))
        return b.trunc(b.select(nan, b.or_(b.lshr(w, c(16)), c(64)), rounded), out.ir)

    return out(v), codegen


@intrinsic
def f16_at(tyctx, addr):
    """The f16 at `addr` as f32. Four are not read at once: only these two bytes are touched."""

    def codegen(ctx, b, sig, a):
        h = b.load(cg.ptr(b, a[0], cg.I16), align=1)
        v = b.insert_element(ir.Constant(ir.VectorType(cg.I16, 8), None), h, cg.I32(0))
        return b.extract_element(cg.f16_to_f32(b, v), cg.I32(0))

    return types.float32(types.uintp), codegen


def f16_gather(count, stride, lanes=None):
    """-> f(addr): `count` f16 that lie `stride` bytes apart, as f32 lanes; further lanes are zero.

    Gathered first and converted at once: a scalar conversion each costs twice the time.
    """
    n = lanes or count
    out = Vec("f32", n)

    @intrinsic
    def gather(tyctx, addr):
        def codegen(ctx, b, sig, a):
            x = ir.Constant(ir.VectorType(cg.I16, n), None)
            for i in range(count):
                at = b.add(a[0], ir.Constant(a[0].type, i * stride))
                x = b.insert_element(x, b.load(cg.ptr(b, at, cg.I16), align=1), cg.I32(i))
            return cg.f16_to_f32(b, x)

        return out(types.uintp), codegen

    return gather


@intrinsic
def put_f16(tyctx, addr, x):
    """Write x rounded to f16; every NaN becomes the quiet one of its sign, as scales of blocks want it."""

    def codegen(ctx, b, sig, a):
        h = cg.f32_to_f16(b, b.insert_element(ir.Constant(ir.VectorType(cg.F32, 8), None), a[1], cg.I32(0)))
        h = b.extract_element(h, cg.I32(0))
        nan = b.or_(b.and_(h, cg.I16(-0x8000)), cg.I16(0x7E00))
        b.store(b.select(b.fcmp_unordered("uno", a[1], a[1]), nan, h), cg.ptr(b, a[0], cg.I16), align=1)
        return ctx.get_dummy_value()

    return types.none(types.uintp, types.float32), codegen


def f16_gather_pairs(count, stride):
    """-> f(addr): `count` (at most 8) pairs of neighbouring f16 that lie `stride` bytes apart, as f32 lanes: the first
    of each pair in lanes 0, 2, 4 ..., further lanes zero."""
    out = Vec("f32", 16)

    @intrinsic
    def gather(tyctx, addr):
        def codegen(ctx, b, sig, a):
            x = ir.Constant(ir.VectorType(cg.I32, 8), None)
            for i in range(count):
                at = b.add(a[0], ir.Constant(a[0].type, i * stride))
                x = b.insert_element(x, b.load(cg.ptr(b, at, cg.I32), align=1), cg.I32(i))
            return cg.f16_to_f32(b, b.bitcast(x, ir.VectorType(cg.I16, 16)))

        return out(types.uintp), codegen

    return gather


@intrinsic
def f16_column(tyctx, addr, stride, last):
    """The f16 at the start of 16 rows, `stride` bytes apart, as f32 lanes; lanes beyond row `last` repeat that row."""
    out = Vec("f32", 16)

    def codegen(ctx, b, sig, a):
        at, stride, last = a
        x = ir.Constant(ir.VectorType(cg.I16, 16), None)
        for i in range(16):
            x = b.insert_element(x, b.load(cg.ptr(b, at, cg.I16), align=1), cg.I32(i))
            more = b.icmp_signed("<", ir.Constant(cg.I64, i), last)
            at = b.add(at, b.select(more, stride, ir.Constant(cg.I64, 0)))
        return cg.f16_to_f32(b, x)

    return out(types.uintp, types.uintp, types.int64), codegen
