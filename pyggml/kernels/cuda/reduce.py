"""ARGMAX: where rows are largest, one block of threads a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import F32, I32, refuse_types, source
from pyggml.kernels.cuda.norm import threads_for
from pyggml.kernels.cuda.spec import Spec, i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

AREA = 128
"""Bytes of shared memory that one meeting of a block's warps takes."""


def why_not(node: Tensor) -> str | None:
    return refuse_types([F32], source(node, 0)) or refuse_types([I32], node)


def lower(builder: Builder, node: Tensor) -> None:
    a = source(node, 0)
    args = ArgmaxArgs(y=node.data, y0=node.nb[0], a=a.data, a0=a.nb[0], a1=a.nb[1], n=a.ne[0])
    builder.launch(Spec("reduce", "argmax"), (a.ne[1],), threads_for(a.ne[0]), args, 4 * AREA)


class ArgmaxArgs(NamedTuple):
    y: i64
    y0: i64
    a: i64
    a0: i64
    a1: i64
    n: i32


def argmax():
    """Of equal elements the last. A NaN clears what is the largest so far, but not its place: what counts lies behind the
    last NaN that has a number behind it."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def most(n, area):
        """The largest i32 of the block, in all threads."""
        n = max(n, d.shuffle_xor_i32(n, 16))
        n = max(n, d.shuffle_xor_i32(n, 8))
        n = max(n, d.shuffle_xor_i32(n, 4))
        n = max(n, d.shuffle_xor_i32(n, 2))
        n = max(n, d.shuffle_xor_i32(n, 1))
        me = d.thread()
        if me & 31 == 0:
            d.sst_i32(area + (me >> 5) * 4, n)
        d.barrier()
        found = d.i32(-1)
        for i in range(32):
            if i < d.threads() >> 5:
                found = max(found, d.sld_i32(area + 4 * i))
        return found

    @entry(ArgmaxArgs)
    def kernel(y, y0, a, a0, a1, n):
        x = a + d.block_x() * a1
        end, lost, best = d.i32(-1), d.i32(-1), d.i32(-1)
        i = d.i32(d.thread())
        while i < n:
            value = d.ld_f32(x + i * a0)
            if value == value:
                end = i
            i = d.i32(i + d.threads())
        end = most(end, d.shared())
        i = d.i32(d.thread())
        while i < end:
            value = d.ld_f32(x + i * a0)
            if value != value:
                lost = i
            i = d.i32(i + d.threads())
        lost = most(lost, d.shared() + AREA)
        top = d.bits_float(-8388608)  # -inf
        i = d.i32(d.thread())
        while i <= end:
            if i > lost:
                value = d.ld_f32(x + i * a0)
                if value >= top:
                    top, best = value, i
            i = d.i32(i + d.threads())
        whole = d.block_max(top, d.shared() + 2 * AREA)
        if top != whole:
            best = d.i32(-1)
        best = most(best, d.shared() + 3 * AREA)
        if d.thread() == 0:
            d.st_i32(y + d.block_x() * y0, max(best, 0))

    return kernel
