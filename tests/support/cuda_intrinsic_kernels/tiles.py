"""Kernels of the intrinsics of tensor cores: one warp, matrices as rows in memory."""

from typing import NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.spec import i64


class Bytes32Args(NamedTuple):
    y: i64
    a: i64
    b: i64


def bytes_32():
    """C (16 x 8) += A (16 x 32) B^T, B as 8 rows of 32."""
    from pyggml.kernels.cuda import device as d

    @entry(Bytes32Args, 32)
    def kernel(y, a, b):
        g, t = d.thread() >> 2, d.thread() & 3
        row, column = a + g * 32 + 4 * t, b + g * 32 + 4 * t
        c0, c1, c2, c3 = d.mma_s8(
            d.ld_i32(row), d.ld_i32(row + 256), d.ld_i32(row + 16), d.ld_i32(row + 272), d.ld_i32(column),
            d.ld_i32(column + 16), 1, 2, 3, 4,
        )  # fmt: skip
        d.st_i32x2(y + g * 32 + 8 * t, c0, c1)
        d.st_i32x2(y + (g + 8) * 32 + 8 * t, c2, c3)

    return kernel


class Bytes16Args(NamedTuple):
    y: i64
    a: i64
    b: i64


def bytes_16():
    from pyggml.kernels.cuda import device as d

    @entry(Bytes16Args, 32)
    def kernel(y, a, b):
        g, t = d.thread() >> 2, d.thread() & 3
        row, column = a + g * 16 + 4 * t, b + g * 16 + 4 * t
        c0, c1, c2, c3 = d.mma_s8_k16(d.ld_i32(row), d.ld_i32(row + 128), d.ld_i32(column), 1, 2, 3, 4)
        d.st_i32x2(y + g * 32 + 8 * t, c0, c1)
        d.st_i32x2(y + (g + 8) * 32 + 8 * t, c2, c3)

    return kernel


class HalvesArgs(NamedTuple):
    y: i64
    a: i64
    b: i64


def halves(brain):
    """The same over 16 F16 or BF16."""
    from pyggml.kernels.cuda import device as d

    @entry(HalvesArgs, 32)
    def kernel(y, a, b):
        g, t = d.thread() >> 2, d.thread() & 3
        row, column = a + g * 32 + 4 * t, b + g * 32 + 4 * t
        a0, a1, a2, a3 = d.ld_i32(row), d.ld_i32(row + 256), d.ld_i32(row + 16), d.ld_i32(row + 272)
        b0, b1 = d.ld_i32(column), d.ld_i32(column + 16)
        one = d.f32(1)
        if brain:
            c0, c1, c2, c3 = d.mma_bf16(a0, a1, a2, a3, b0, b1, one, one + one, one, one + one)
        else:
            c0, c1, c2, c3 = d.mma_f16(a0, a1, a2, a3, b0, b1, one, one + one, one, one + one)
        d.st_f32x2(y + g * 32 + 8 * t, c0, c1)
        d.st_f32x2(y + (g + 8) * 32 + 8 * t, c2, c3)

    return kernel


class LoadsArgs(NamedTuple):
    y: i64
    a: i64


def loads(transposed):
    """32 rows of 16 bytes by asynchronous copies; then each lane's four registers."""
    from pyggml.kernels.cuda import device as d

    @entry(LoadsArgs, 32)
    def kernel(y, a):
        at = d.shared() + 16 * d.thread()
        d.cp_async16(at, a + 16 * d.thread())
        d.cp_async_commit()
        d.cp_async_wait()
        d.warp_barrier()
        if transposed:
            r0, r1, r2, r3 = d.ldmatrix_x4_trans(at)
        else:
            r0, r1, r2, r3 = d.ldmatrix_x4(at)
        d.st_i32x4(y + 16 * d.thread(), r0, r1, r2, r3)

    return kernel


class CopiesArgs(NamedTuple):
    y: i64
    a: i64


def copies(mistake):
    """32 bytes a thread through shared memory by asynchronous copies in two groups: the first half of its own, then the second of
    another's. mistake: 0 none; 1 nobody waits for the second group; 2 all but that one are waited for; 3 it is no group; 4 threads
    do not meet."""
    from pyggml.kernels.cuda import device as d

    @entry(CopiesArgs, 64)
    def kernel(y, a):
        me = d.thread()
        at, of = d.shared() + 32 * me, a + 32 * me
        d.cp_async16(at, of)
        d.cp_async_commit()
        d.cp_async8(at + 16, of + 16)
        d.cp_async4(at + 24, of + 24)
        d.cp_async4(at + 28, of + 28)
        if mistake != 3:
            d.cp_async_commit()
        d.cp_async_wait_one()
        r0, r1, r2, r3 = d.sld_i32x4(at)
        d.st_i32x4(y + 32 * me, r0, r1, r2, r3)
        if mistake == 2:
            d.cp_async_wait_one()
        elif mistake != 1:
            d.cp_async_wait()
        if mistake != 4:
            d.barrier()
        r0, r1, r2, r3 = d.sld_i32x4(d.shared() + 32 * (d.once(63) - me) + 16)
        d.st_i32x4(y + 32 * me + 16, r0, r1, r2, r3)

    return kernel
