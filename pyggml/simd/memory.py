"""Loads and stores: scalars, whole registers, parts of registers that touch no byte beyond, lanes that lie apart.

Addresses are plain integers (uintp), of any alignment."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.vectors import Vec


def _scalar_load(llvm_type, numba_type):
    @intrinsic
    def load(tyctx, addr):
        return numba_type(types.uintp), lambda ctx, b, sig, a: b.load(cg.ptr(b, a[0], llvm_type), align=1)

    return load


def _scalar_store(llvm_type, numba_type):
    @intrinsic
    def store(tyctx, addr, value):
        def codegen(ctx, b, sig, a):
            b.store(a[1], cg.ptr(b, a[0], llvm_type), align=1)
            return ctx.get_dummy_value()

        return types.none(types.uintp, numba_type), codegen

    return store


f32_at, i32_at, i64_at = (
    _scalar_load(t, n) for t, n in ((cg.F32, types.float32), (cg.I32, types.int32), (cg.I64, types.int64))
)


def _scalar_load_once(llvm_type, numba_type):
    """A load that the compiler may neither repeat nor split: what was checked is what is used, whoever writes there."""

    @intrinsic
    def load(tyctx, addr):
        return numba_type(types.uintp), lambda ctx, b, sig, a: b.load_atomic(
            cg.ptr(b, a[0], llvm_type), "monotonic", llvm_type.width // 8
        )

    return load


i32_once, i64_once = _scalar_load_once(cg.I32, types.int32), _scalar_load_once(cg.I64, types.int64)


u8_at, u16_at, u64_at = (
    _scalar_load(t, n) for t, n in ((cg.I8, types.uint8), (cg.I16, types.uint16), (cg.I64, types.uintp))
)


put_f32, put_i32 = _scalar_store(cg.F32, types.float32), _scalar_store(cg.I32, types.int32)


put_u8, put_u16 = _scalar_store(cg.I8, types.uint8), _scalar_store(cg.I16, types.uint16)


put_i64 = _scalar_store(cg.I64, types.int64)


def loader(elem, n):
    """-> load(addr): n lanes from memory, any alignment."""
    vec = Vec(elem, n)

    @intrinsic
    def load(tyctx, addr):
        return vec(types.uintp), lambda ctx, b, sig, a: b.load(cg.ptr(b, a[0], vec.ir), align=1)

    return load


def broadcaster(mem, elem, n):
    """-> load(addr): the scalar `mem` ("i32", "f32") repeated over a register of n lanes of `elem`."""
    vec = Vec(elem, n)
    scalar = cg.SCALAR[mem]

    @intrinsic
    def load(tyctx, addr):
        def codegen(ctx, b, sig, a):
            value = b.load(cg.ptr(b, a[0], scalar), align=1)
            return b.bitcast(
                cg.splat(b, value, vec.n * vec.ir.element.width // 32 if vec.elem != "f32" else vec.n), vec.ir
            )

        return vec(types.uintp), codegen

    return load


def part_loader(elem, n):
    """-> load(addr, count): lanes below `count` from memory, zero in the others; touches no byte beyond."""
    vec = Vec(elem, n)

    @intrinsic
    def load(tyctx, addr, count):
        def codegen(ctx, b, sig, a):
            p = cg.ptr(b, a[0], vec.ir)
            name = f"llvm.masked.load.{cg.suffix(vec.ir)}.p0"
            mask = cg.mask(b, a[1], n)
            fnty = ir.FunctionType(vec.ir, [p.type, cg.I32, mask.type, vec.ir])
            fn = cgutils.get_or_insert_function(b.module, fnty, name)
            return b.call(fn, [p, cg.I32(1), mask, ir.Constant(vec.ir, None)])

        return vec(types.uintp, types.int64), codegen

    return load


@intrinsic
def store(tyctx, addr, v):
    """Write a vector, any alignment."""

    def codegen(ctx, b, sig, a):
        b.store(a[1], cg.ptr(b, a[0], a[1].type), align=1)
        return ctx.get_dummy_value()

    return types.none(types.uintp, v), codegen


@intrinsic
def store_part(tyctx, addr, v, count):
    """Write the lanes below `count` and touch no byte beyond."""

    def codegen(ctx, b, sig, a):
        p = cg.ptr(b, a[0], a[1].type)
        mask = cg.mask(b, a[2], v.n)
        fnty = ir.FunctionType(ir.VoidType(), [a[1].type, p.type, cg.I32, mask.type])
        fn = cgutils.get_or_insert_function(b.module, fnty, f"llvm.masked.store.{cg.suffix(a[1].type)}.p0")
        b.call(fn, [a[1], p, cg.I32(1), mask])
        return ctx.get_dummy_value()

    return types.none(types.uintp, v, types.int64), codegen


def _prefetch(locality):
    @intrinsic
    def ask(tyctx, addr):
        def codegen(ctx, b, sig, a):
            p = cg.I8.as_pointer()
            fnty = ir.FunctionType(ir.VoidType(), [p, cg.I32, cg.I32, cg.I32])
            fn = cgutils.get_or_insert_function(b.module, fnty, "llvm.prefetch.p0")
            b.call(fn, [b.inttoptr(a[0], p), cg.I32(0), cg.I32(locality), cg.I32(1)])
            return ctx.get_dummy_value()

        return types.none(types.uintp), codegen

    return ask


prefetch, prefetch_l2 = _prefetch(3), _prefetch(2)
"""Ask for a line, into the first cache or into the second. The first one has few places for lines that are under way (16 on
recent Intel cores): a stream from memory is as fast as the second one can ask."""


load_f32, load_f32x8 = loader("f32", 16), loader("f32", 8)


load_i32, load_i8, load_u8 = loader("i32", 16), loader("i8", 64), loader("u8", 64)


load_u8x16, load_u8x32, load_u16, load_u16x8 = loader("u8", 16), loader("u8", 32), loader("u16", 16), loader("u16", 8)


load_f32_part, load_u16_part = part_loader("f32", 16), part_loader("u16", 16)


broadcast_f32 = broadcaster("f32", "f32", 16)


broadcast_i32 = broadcaster("i32", "i32", 16)


broadcast_4i8 = broadcaster("i32", "i8", 64)


def strided_loader(elem):
    """-> load(addr, stride, count): `count` <= 16 lanes that lie `stride` bytes apart; zero in the others."""
    vec = Vec(elem, 16)
    scalar = cg.SCALAR[elem]

    @intrinsic
    def load(tyctx, addr, stride, count):
        def codegen(ctx, b, sig, a):
            room = cgutils.alloca_once(b, vec.ir)
            b.store(ir.Constant(vec.ir, None), room)
            first = b.bitcast(room, scalar.as_pointer())
            with cgutils.for_range(b, a[2], intp=cg.I64) as loop:
                at = b.add(a[0], b.mul(loop.index, a[1]))
                b.store(b.load(cg.ptr(b, at, scalar), align=1), b.gep(first, [loop.index]))
            return b.load(room)

        return vec(types.uintp, types.int64, types.int64), codegen

    return load


@intrinsic
def store_strided(tyctx, addr, v, stride, count):
    """Write the lanes below `count`, `stride` bytes apart."""

    def codegen(ctx, b, sig, a):
        scalar = a[1].type.element
        room = cgutils.alloca_once(b, a[1].type)
        b.store(a[1], room)
        first = b.bitcast(room, scalar.as_pointer())
        with cgutils.for_range(b, a[3], intp=cg.I64) as loop:
            at = b.add(a[0], b.mul(loop.index, a[2]))
            b.store(b.load(b.gep(first, [loop.index])), cg.ptr(b, at, scalar), align=1)
        return ctx.get_dummy_value()

    return types.none(types.uintp, v, types.int64, types.int64), codegen


@intrinsic
def copy_bytes(tyctx, to, source, count):
    """memmove: the two may overlap."""

    def codegen(ctx, b, sig, a):
        p = cg.I8.as_pointer()
        fnty = ir.FunctionType(ir.VoidType(), [p, p, cg.I64, cg.I1])
        fn = cgutils.get_or_insert_function(b.module, fnty, "llvm.memmove.p0.p0.i64")
        b.call(fn, [b.inttoptr(a[0], p), b.inttoptr(a[1], p), a[2], cg.I1(0)])
        return ctx.get_dummy_value()

    return types.none(types.uintp, types.uintp, types.int64), codegen


def reader(at, kind):
    """-> f(addr): the scalar `at` bytes further: "i32", "f32", "f64", "i64" or an address, "u64"."""
    llvm_type, numba_type = {
        "i32": (cg.I32, types.int32),
        "f32": (cg.F32, types.float32),
        "f64": (ir.DoubleType(), types.float64),
        "i64": (cg.I64, types.int64),
        "u64": (cg.I64, types.uintp),
    }[kind]

    @intrinsic
    def read(tyctx, addr):
        def codegen(ctx, b, sig, a):
            return b.load(cg.ptr(b, b.add(a[0], ir.Constant(a[0].type, at)), llvm_type), align=4)

        return numba_type(types.uintp), codegen

    return read


def scatter_i32(count, stride):
    """-> f(addr, v): word i (32 bits) of the register at addr + i * stride, for i < count."""

    @intrinsic
    def scatter(tyctx, addr, v):
        def codegen(ctx, b, sig, a):
            words = b.bitcast(a[1], ir.VectorType(cg.I32, count))
            for i in range(count):
                at = b.add(a[0], ir.Constant(a[0].type, i * stride))
                b.store(b.extract_element(words, cg.I32(i)), cg.ptr(b, at, cg.I32), align=1)
            return ctx.get_dummy_value()

        return types.none(types.uintp, v), codegen

    return scatter


def float_loader(kind):
    """-> (load(addr), load_part(addr, count)): 16 elements of "F32", "F16" or "BF16" as f32 lanes."""
    vec = Vec("f32", 16)

    @intrinsic
    def load(tyctx, addr):
        return vec(types.uintp), lambda ctx, b, sig, a: cg.load_floats(b, a[0], kind)

    @intrinsic
    def load_part(tyctx, addr, count):
        return vec(types.uintp, types.int64), lambda ctx, b, sig, a: cg.load_floats(b, a[0], kind, 16, a[1])

    return load, load_part
