"""What threads share: atomics, waiting, and calling a kernel by its address."""

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
    """Sequentially consistent: it is not moved before an earlier `atomic_add` or `atomic_replace`."""
    return types.int64(types.uintp), lambda ctx, b, sig, a: b.load_atomic(cg.ptr(b, a[0], cg.I64), "seq_cst", 8)


@intrinsic
def atomic_replace(tyctx, addr, expected, value):
    """Write the i64 `value` where `expected` stands. -> whether it stood there."""

    def codegen(ctx, b, sig, a):
        done = b.cmpxchg(cg.ptr(b, a[0], cg.I64), a[1], a[2], "seq_cst", "seq_cst")
        return b.extract_value(done, 1)

    return types.boolean(types.uintp, types.int64, types.int64), codegen


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


def _caller(words):
    """-> f(address, ...): call machine code that takes so many words of 64 bits, the first of them an address."""
    signature = types.none(types.uintp, types.uintp, *[types.int64] * (words - 1))
    function = ir.FunctionType(ir.VoidType(), [cg.I64] * words)

    def codegen(ctx, b, sig, a):
        b.call(b.inttoptr(a[0], function.as_pointer()), a[1:])
        return ctx.get_dummy_value()

    return signature, codegen


@intrinsic
def call_step(tyctx, address, step, ith, nth, thread):
    """A kernel with the signature jit.STEP."""
    return _caller(4)


@intrinsic
def call_kernel(tyctx, address, call, b, c):
    """A kernel with the signature jit.CALL."""
    return _caller(3)
