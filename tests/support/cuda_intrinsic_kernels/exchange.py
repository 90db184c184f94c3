"""Kernels of the intrinsics for threads and memory."""

from typing import NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.spec import i32, i64


class WarpsArgs(NamedTuple):
    y: i64
    a: i64


def warps():
    """One block: for each thread its neighbours' values, and sums and maxima of its warp and its block."""
    from pyggml.kernels.cuda import device as d

    @entry(WarpsArgs, 1024)
    def kernel(y, a):
        me, n = d.thread(), d.threads()
        x = d.ld_f32(a + 4 * me)
        at, step = y + 4 * me, 4 * n
        d.st_f32(at, d.shuffle_xor_f32(x, 5))
        d.st_f32(at + step, d.f32(d.shuffle_xor_i32(me, 16)))
        d.st_f32(at + 2 * step, d.shuffle_f32(x, 3))
        d.st_f32(at + 3 * step, d.f32(d.shuffle_i32(me, (me + 1) & 31)))
        d.st_f32(at + 4 * step, d.warp_sum(x))
        d.st_f32(at + 5 * step, d.warp_max(x))
        d.st_f32(at + 6 * step, d.block_sum(x, d.shared()))
        d.st_f32(at + 7 * step, d.block_max(x, d.shared() + 128))

    return kernel


class MovesArgs(NamedTuple):
    y: i64
    a: i64


def moves():
    """One warp: each load and store of either memory; lane i has 64 bytes of a, 128 of y and 128 of shared memory."""
    from pyggml.kernels.cuda import device as d

    @entry(MovesArgs, 32)
    def kernel(y, a):
        at, to = a + 64 * d.thread(), y + 128 * d.thread()
        s = d.shared() + 128 * d.thread()
        d.st_u8(to, d.ld_u8(at))
        d.st_u8(to + 1, d.ld_i8(at + 1) >> 1)
        d.st_u16(to + 2, d.ld_u16(at + 2))
        d.st_i32(to + 4, d.ld_i32(at + 4))
        d.st_i64(to + 8, d.ld_i64(at + 8))
        p0, p1, p2, p3 = d.ld_i32x4(at + 16)
        d.st_i32x4(to + 16, p3, p2, p1, p0)
        u0, u1 = d.ld_i32x2(at + 32)
        d.st_i32x2(to + 32, u1, u0)
        f0, f1 = d.ld_f32x2(at + 40)
        d.st_f32x2(to + 40, f1, f0)
        v0, v1, v2, v3 = d.ld_f32x4(at + 48)
        d.st_f32x4(to + 48, v3, v2, v1, v0)
        d.st_f16(to + 64, d.ld_f16(at))
        d.st_bf16(to + 66, d.ld_bf16(at + 2))
        d.st_f16(to + 68, d.ld_bf16(at + 4))
        d.st_u16(to + 70, 0)
        d.sst_u8(s, d.ld_u8(at))
        d.sst_u8(s + 1, d.ld_u8(at + 1))
        d.sst_u16(s + 2, d.ld_u16(at + 2))
        d.sst_i32(s + 4, d.ld_i32(at + 4))
        d.sst_f32(s + 8, d.ld_f32(at + 8))
        d.sst_f16(s + 12, d.ld_f16(at + 12))
        d.sst_bf16(s + 14, d.ld_bf16(at + 14))
        d.sst_i32x4(s + 16, p0, p1, p2, p3)
        d.sst_i32x2(s + 32, u0, u1)
        d.sst_f32x2(s + 40, f0, f1)
        d.sst_f32x4(s + 48, v0, v1, v2, v3)
        d.barrier()
        other = d.shared() + 128 * (31 - d.thread())
        d.st_u8(to + 72, d.sld_u8(other))
        d.st_u8(to + 73, d.sld_i8(other + 1))
        d.st_u16(to + 74, d.sld_u16(other + 2))
        d.st_i32(to + 76, d.sld_i32(other + 4))
        d.st_f32(to + 80, d.sld_f32(other + 8))
        d.st_f16(to + 84, d.sld_f16(other + 12))
        d.st_u16(to + 86, d.sld_u16(other + 14))
        p0, p1, p2, p3 = d.sld_i32x4(other + 16)
        d.st_i32x2(to + 88, p0 + p2, p1 + p3)
        u0, u1 = d.sld_i32x2(other + 32)
        d.st_i32x2(to + 96, u0, u1)
        f0, f1 = d.sld_f32x2(other + 40)
        d.st_f32x2(to + 104, f0, f1)
        v0, v1, v2, v3 = d.sld_f32x4(other + 48)
        d.st_f32x4(to + 112, v0, v1, v2, v3)

    return kernel


class TicketsArgs(NamedTuple):
    y: i64
    at: i64
    n: i32


def tickets():
    """Each block writes its number; the last of n to draw a ticket adds up what all have written, and lays the tickets back."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.tickets import last

    is_last = last()

    @entry(TicketsArgs, 64)
    def kernel(y, at, n):
        me = d.i32(d.thread())
        d.st_i32(y + (d.block_x() * 64 + me) * 4, d.block_x() + me)
        if is_last(at, n, d.shared()):
            total, block = d.i32(0), d.i32(0)
            while block < n:
                total = d.i32(total + d.ld_i32(y + (block * 64 + (63 - me)) * 4))
                block = d.i32(block + 1)
            d.st_i32(y + (n * 64 + me) * 4, total)

    return kernel


class CountsArgs(NamedTuple):
    y: i64
    a: i64


def counts():
    """One block of 256 threads: how often each of 32 numbers comes, and that each of them got another of its places."""
    from pyggml.kernels.cuda import device as d

    @entry(CountsArgs, 256)
    def kernel(y, a):
        me = d.i32(d.thread())
        if me < 32:
            d.sst_i32(d.shared() + 4 * me, 100 * me)
        d.barrier()
        d.st_i32(y + 4 * me, d.sadd_i32(d.shared() + 4 * d.ld_i32(a + 4 * me), 1))
        d.barrier()
        if me < 32:
            d.st_i32(y + 4 * (256 + me), d.sld_i32(d.shared() + 4 * me))

    return kernel
