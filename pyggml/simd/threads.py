"""What threads share: atomics, waiting, and calling a kernel by its address. Knows no plan."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyggml.simd import codegen as cg
from pyggml.simd.codegen import LEVEL


@intrinsic
def atomic_add(tyctx, addr, value):
    """The i64 before `value` was added."""
    return types.int64(types.uintp, types.int64), lambda ctx, b, sig, a: b.atomic_rmw(
        "add", cg.ptr(b, a[0], cg.I64), a[1], "seq_cst"
    )


@intrinsic
def atomic_load(tyctx, addr):
    return types.int64(types.uintp), lambda ctx, b, sig, a: b.load_atomic(cg.ptr(b, a[0], cg.I64), "acquire", 8)


@intrinsic
def atomic_store(tyctx, addr, value):
    def codegen(ctx, b, sig, a):
        b.store_atomic(a[1], cg.ptr(b, a[0], cg.I64), "release", 8)
        return ctx.get_dummy_value()

    return types.none(types.uintp, types.int64), codegen


def _void_call(name):
    """-> f(): a function of the C library, or an LLVM intrinsic, that is called for what it does."""

    @intrinsic
    def call(tyctx):
        def codegen(ctx, b, sig, a):
            cg.call(b, name, ir.VoidType(), [])
            return ctx.get_dummy_value()

        return types.none(), codegen

    return call


def _pointer_call(name):
    """-> f(addr): a function of the C library that takes a pointer and returns an int of no interest."""

    @intrinsic
    def call(tyctx, addr):
        def codegen(ctx, b, sig, a):
            cg.call(b, name, cg.I32, [cg.ptr(b, a[0], cg.I8)])
            return ctx.get_dummy_value()

        return types.none(types.uintp), codegen

    return call


pause = _void_call("llvm.donothing" if LEVEL == "generic" else "llvm.x86.sse2.pause")


sched_yield = _void_call("sched_yield")


sem_wait, sem_post = _pointer_call("sem_wait"), _pointer_call("sem_post")


@intrinsic
def call_kernel(tyctx, address, step, ith, nth):
    def codegen(ctx, b, sig, a):
        fn = b.inttoptr(a[0], ir.FunctionType(ir.VoidType(), [cg.I64, cg.I64, cg.I64]).as_pointer())
        b.call(fn, a[1:])
        return ctx.get_dummy_value()

    return types.none(types.uintp, types.uintp, types.int64, types.int64), codegen
