"""PAD, PAD_REFLECT_1D, ROLL, and REPEAT's work: each element of the result is one of the source's, or 0.

Owns one kernel, which knows where an element comes from and nothing of what its bytes mean. Sources: ggml-cpu/ops.cpp:
ggml_compute_forward_pad_f32, ggml_compute_forward_pad_reflect_1d, ggml_compute_forward_roll_f32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

SINGLE = tuple(t for t in GGMLType if SIZES[t].block_size == 1)
ZEROS, ROUND, MIRROR = range(3)
"""What lies outside of the source: zeros; the source again; in dimension 0 its mirror image."""


def why_not(node: Tensor) -> str | None:
    return refuse_types(SINGLE, node, node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    if node.op == Op.PAD:
        before = [node.param_i32(2 * i) for i in range(4)]
        take(builder, node, before, ROUND if node.param_i32(8) else ZEROS)
    elif node.op == Op.PAD_REFLECT_1D:
        take(builder, node, (node.param_i32(0), 0, 0, 0), MIRROR)
    else:
        take(builder, node, [node.param_i32(i) for i in range(4)], ROUND)


def take(builder: Builder, node: Tensor, before: Sequence[int], outside: int) -> None:
    """A step that makes element i of the result, in each dimension, element i - before of the source."""
    before0, before1, before2, before3 = before
    args = PadArgs(before0, before1, before2, before3, outside, SIZES[node.type].type_size)
    builder.step(Spec("pad", "taken"), node, (node.src[0],), args=args)


class PadArgs(NamedTuple):
    """before0 to 3: elements of the result before the source's first in each dimension. outside: what lies there. size: bytes
    an element."""

    before0: int
    before1: int
    before2: int
    before3: int
    outside: int
    size: int


def taken():
    """-> kernel. Takes PadArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record, step_args

    U, move, clear = v.U, convert.move_elements, convert.clear_elements
    args = step_args.readers(PadArgs)
    b0, b1, b2, b3 = args.before0, args.before1, args.before2, args.before3
    outside, size_of = args.outside, args.size
    n0, n1, n2 = (record.field("dst.ne", i) for i in range(3))
    m0, m1, m2, m3 = (record.field("src0.ne", i) for i in range(4))
    d, a, rows = record.row("dst"), record.element("src0"), record.rows("dst")
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    def kernel(step, ith, nth, thread):
        n, m, first, how, size = n0(step), m0(step), b0(step), outside(step), size_of(step)
        count, sd, sa = rows(step), nbd(step), nba(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            j1 = row % n1(step) - b1(step)
            j2 = row // n1(step) % n2(step) - b2(step)
            j3 = row // n1(step) // n2(step) - b3(step)
            to = d(step, row)
            if how == ROUND:
                source = a(step, 0, j1 % m1(step), j2 % m2(step), j3 % m3(step))
                i = 0
                while i < n:
                    j = (i - first) % m
                    k = min(m - j, n - i)
                    move(to + U(i * sd), sd, source + U(j * sa), sa, k, size)
                    i += k
            elif j1 < 0 or j1 >= m1(step) or j2 < 0 or j2 >= m2(step) or j3 < 0 or j3 >= m3(step):
                clear(to, sd, n, size)
            else:
                source = a(step, 0, j1, j2, j3)
                move(to + U(first * sd), sd, source, sa, m, size)
                if how == ZEROS:
                    clear(to, sd, first, size)
                    clear(to + U((first + m) * sd), sd, n - first - m, size)
                else:
                    for i in range(1, first + 1):
                        move(to + U((first - i) * sd), size, source + U(i * sa), size, 1, size)
                    for i in range(1, n - first - m + 1):
                        move(to + U((first + m - 1 + i) * sd), size, source + U((m - 1 - i) * sa), size, 1, size)

    return kernel
