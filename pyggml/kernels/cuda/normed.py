"""A row over its root mean square, times weights, and the same as bytes: what RMS_NORM and MUL ask of a block of threads, and
products after it. The bits do not depend on how many threads the block has."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.spec import f32, i32, i64

if TYPE_CHECKING:
    from pyggml.kernels.cuda.activations import Activations

AREA = 128
"""Bytes of shared memory that the sum takes."""


class Normed(NamedTuple):
    """A dense row's result and the weights; how many threads add up its squares (`wide`, a multiple of 128); its bytes and
    their scales (0: not wanted), so many in all."""

    z: i64 = 0
    weights: i64 = 0
    eps: f32 = 0.0
    wide: i32 = 0
    q: i64 = 0
    q_scales: i64 = 0
    q_step: i32 = 0


def normed(z: int, weights: int, eps: float, wide: int, made: Activations | None) -> Normed:
    if made is None:
        return Normed(z, weights, eps, wide)
    return Normed(z, weights, eps, wide, made.bytes, made.scales, made.step)


def row():
    """-> f(x, n, z, weights, eps, wide, q, scales, step, area): all threads of a block (a divisor of `wide`) call it."""
    import math

    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.activations import quantizing

    put = quantizing()

    @d.inline
    def norm_row(x, n, z, weights, eps, wide, q, scales, step, area):
        me = d.i32(d.thread())
        begin = me
        while begin < wide:
            total = d.f32(0)
            i = begin
            while i < n:
                value = d.ld_f32(x + i * 4)
                total = d.fma(value, value, total)
                i = d.i32(i + wide)
            total = d.warp_sum(total)
            if me & 31 == 0:
                d.sst_f32(area + (begin >> 5) * 4, total)
            begin = d.i32(begin + d.threads())
        d.barrier()
        total = d.f32(0)
        if me & 31 < wide >> 5:
            total = d.sld_f32(area + (me & 31) * 4)
        by = d.f32(1) / math.sqrt(d.warp_sum(total) / d.f32(n) + eps)
        i = me
        while i < max(step, n):
            value = d.f32(0)
            if i < n:
                value = d.ld_f32(x + i * 4) * by * d.ld_f32(weights + i * 4)
                d.st_f32(z + i * 4, value)
            if q != 0:
                put(q + i, scales + (i >> 2), value)
            i = d.i32(i + d.threads())

    return norm_row
