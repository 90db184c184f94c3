"""Deliberately wrong kernels: the tests of machine code must refuse each. Must not be imported by anything else."""

from typing import NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.spec import f32, i32, i64


class DoublesArgs(NamedTuple):
    y: i64
    x: f32


def doubles():
    """A float literal without a type."""
    from pyggml.kernels.cuda import device as d

    @entry(DoublesArgs)
    def kernel(y, x):
        d.st_f32(y, x * 0.1)

    return kernel


class WithoutDp4aArgs(NamedTuple):
    y: i64
    a: i32
    b: i32


def without_dp4a():
    from pyggml.kernels.cuda import device as d

    @entry(WithoutDp4aArgs)
    def kernel(y, a, b):
        total = 0
        for k in range(4):
            total += (((a >> (8 * k)) & 255) - 128) * (((b >> (8 * k)) & 255) - 128)
        d.st_i32(y, total)

    return kernel


class WithAStackArgs(NamedTuple):
    y: i64
    a: i32
    b: i32


def with_a_stack():
    """An array whose index is only known when the kernel runs."""
    from pyggml.kernels.cuda import device as d

    @entry(WithAStackArgs)
    def kernel(y, a, b):
        values = d.cuda.local.array(64, d.i32)
        i = 0
        while i < b:
            values[(i * a) & 63] = d.dp4a(a, d.i32(b + i), 0)
            i += 1
        d.st_i32(y, values[b & 63])

    return kernel
