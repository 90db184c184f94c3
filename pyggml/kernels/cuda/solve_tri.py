"""SOLVE_TRI: forward substitution, one thread a right-hand side."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import entry
from pyggml.kernels.cuda.layout import F32, blocks, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

THREADS = 64


def why_not(node: Tensor) -> str | None:
    if not node.is_contiguous:
        return "the result is not contiguous"
    return refuse_types([F32], node, source(node, 0), source(node, 1))


def lower(builder: Builder, node: Tensor) -> None:
    a, b = source(node, 0), source(node, 1)
    width, n = b.ne[0], a.ne[0]
    args = SolveTriArgs(y=node.data, a=a.data, b=b.data, n=n, width=width, total=width * b.ne[2] * b.ne[3])
    builder.launch(Spec("solve_tri", "solve_tri"), (blocks(args.total, THREADS),), THREADS, args)


class SolveTriArgs(NamedTuple):
    """Matrices of n x n, right-hand sides of n rows of `width` columns; `total`: columns of all."""

    y: i64
    a: i64
    b: i64
    n: i32
    width: i32
    total: i32


def solve_tri():
    from pyggml.kernels.cuda import device as d

    @entry(SolveTriArgs, THREADS)
    def kernel(y, a, b, n, width, total):
        i = d.i32(d.block_x() * THREADS + d.thread())
        if i < total:
            batch = d.udiv(i, width)
            column = d.i64(batch) * n * width + (i - batch * width)
            matrix = a + d.i64(batch) * n * n * 4
            x, known = y + 4 * column, b + 4 * column
            row = d.i32(0)
            while row < n:
                rest = d.ld_f32(known + d.i64(row) * width * 4)
                at = matrix + d.i64(row) * n * 4
                j = d.i32(0)
                while j < row:
                    rest = d.fma(-d.ld_f32(at + j * 4), d.ld_f32(x + d.i64(j) * width * 4), rest)
                    j = d.i32(j + 1)
                d.st_f32(x + d.i64(row) * width * 4, rest / d.ld_f32(at + row * 4))
                row = d.i32(row + 1)

    return kernel
