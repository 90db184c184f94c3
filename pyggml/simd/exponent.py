"""Scales that are exponents alone: bytes of E8M0, which stand for half of a power of two (ggml-impl.h:
ggml_e8m0_to_fp32_half), to f32."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.vectors import Vec


def emit(b, e):
    """i32 lanes of bytes -> f32 lanes. The two least are subnormal numbers."""
    lanes = e.type

    def c(x):
        return cg.const(lanes, [x] * lanes.count)

    normal = b.shl(b.sub(e, c(1)), c(23))
    subnormal = b.shl(c(0x00200000), b.and_(e, c(1)))
    return b.bitcast(b.select(b.icmp_signed("<", e, c(2)), subnormal, normal), Vec("f32", lanes.count).ir)


def e8m0_gather(count, stride, lanes):
    """-> f(addr): `count` bytes that lie `stride` bytes apart, as f32 lanes; what is in further lanes does not matter."""
    out = Vec("f32", lanes)

    @intrinsic
    def gather(tyctx, addr):
        def codegen(ctx, b, sig, a):
            x = ir.Constant(ir.VectorType(cg.I8, lanes), None)
            for i in range(count):
                at = b.add(a[0], ir.Constant(a[0].type, i * stride))
                x = b.insert_element(x, b.load(cg.ptr(b, at, cg.I8), align=1), cg.I32(i))
            return emit(b, b.zext(x, ir.VectorType(cg.I32, lanes)))

        return out(types.uintp), codegen

    return gather


@intrinsic
def e8m0_at(tyctx, addr):
    """The byte at `addr` as f32."""

    def codegen(ctx, b, sig, a):
        e = b.zext(b.load(cg.ptr(b, a[0], cg.I8), align=1), cg.I32)
        lanes = b.insert_element(ir.Constant(ir.VectorType(cg.I32, 4), None), e, cg.I32(0))
        return b.extract_element(emit(b, lanes), cg.I32(0))

    return types.float32(types.uintp), codegen
