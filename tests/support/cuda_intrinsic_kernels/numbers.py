"""Kernels of the intrinsics for numbers: one thread an input, results in planes of n."""

from typing import NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.spec import i32, i64


class IntegersArgs(NamedTuple):
    y: i64
    a: i64
    b: i64
    c: i64
    n: i32


def integers():
    from pyggml.kernels.cuda import device as d

    @entry(IntegersArgs, 64)
    def kernel(y, a, b, c, n):
        i = d.block_x() * d.threads() + d.thread()
        if i < n:
            p, q, r = d.ld_i32(a + 4 * i), d.ld_i32(b + 4 * i), d.ld_i32(c + 4 * i)
            at = y + 4 * i
            d.st_i32(at, d.dp4a(p, q, r))
            d.st_i32(at + 4 * n, d.permute(p, q, r & 0x7777))
            d.st_i32(at + 8 * n, d.funnel(p, q, r & 31))
            d.st_i32(at + 12 * n, d.udiv(p & 0x7FFFFFFF, (q & 0xFFFF) + 1))
            d.st_i32(at + 16 * n, d.urem(p & 0x7FFFFFFF, (q & 0xFFFF) + 1))
            d.st_i32(at + 20 * n, d.shr(p, r & 31))

    return kernel


class FloatsArgs(NamedTuple):
    y: i64
    a: i64
    b: i64
    c: i64
    n: i32


def floats():
    from pyggml.kernels.cuda import device as d

    @entry(FloatsArgs, 64)
    def kernel(y, a, b, c, n):
        i = d.block_x() * d.threads() + d.thread()
        if i < n:
            p, q, r = d.ld_f32(a + 4 * i), d.ld_f32(b + 4 * i), d.ld_f32(c + 4 * i)
            at, step = y + 4 * i, 4 * n
            d.st_f32(at, d.fma(p, q, r))
            d.st_f32(at + step, d.mul_rn(p, q) + r)
            d.st_f32(at + 2 * step, d.fmaximum(p, q))
            d.st_f32(at + 3 * step, d.sign_of(p, q))
            d.st_f32(at + 4 * step, d.round_down(p))
            d.st_f32(at + 5 * step, d.f32(d.round_i32(p)))
            d.st_f32(at + 6 * step, d.f32(d.truncate_i32(p)))
            d.st_f32(at + 7 * step, d.ex2(p))
            d.st_f32(at + 8 * step, d.rcp(p))
            d.st_f32(at + 9 * step, d.h2f(d.f2h(p)))
            d.st_f32(at + 10 * step, d.b2f(d.f2b(p)))
            d.st_f32(at + 11 * step, d.bits_float(d.float_bits(p)))

    return kernel


class AnglesArgs(NamedTuple):
    y: i64
    a: i64
    n: i32


def angles():
    from pyggml.kernels.cuda import device as d

    @entry(AnglesArgs, 64)
    def kernel(y, a, n):
        i = d.block_x() * d.threads() + d.thread()
        if i < n:
            x = d.ld_f32(a + 4 * i)
            d.st_f32(y + 4 * i, d.sin_turn(x))
            d.st_f32(y + 4 * (n + i), d.cos_turn(x))

    return kernel


class PacksArgs(NamedTuple):
    y: i64
    a: i64
    b: i64
    n: i32


def packs():
    """Compute capability 8.0."""
    from pyggml.kernels.cuda import device as d

    @entry(PacksArgs, 64)
    def kernel(y, a, b, n):
        i = d.block_x() * d.threads() + d.thread()
        if i < n:
            p, q = d.ld_f32(a + 4 * i), d.ld_f32(b + 4 * i)
            d.st_i32(y + 4 * i, d.pack_f16(p, q))
            d.st_i32(y + 4 * (n + i), d.pack_bf16(p, q))

    return kernel
