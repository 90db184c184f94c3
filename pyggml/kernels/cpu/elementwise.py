"""ADD, SUB, MUL, DIV, ADD1 with broadcasting: the second operand is repeated over the first, in every dimension.

Owns arithmetic between two tensors; functions of one tensor are in unary.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.formats import CONVERTIBLE, WRITE_ROOM
from pyggml.kernels.cpu.layout import FLOATS, layout_of, refuse_types
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

NAMES = {Op.ADD: "add", Op.SUB: "sub", Op.MUL: "mul", Op.DIV: "div", Op.ADD1: "add"}


def why_not(node: Tensor) -> str | None:
    a, b = node.src[:2]
    assert a is not None and b is not None
    if node.op not in (Op.ADD, Op.ADD1) or SIZES[a.type].block_size == 1:
        return refuse_types(FLOATS, node, a, b)
    if b.ne[0] != a.ne[0] and b.ne[0] != 1:
        return f"rows of {b.ne[0]} elements cannot be repeated over rows of blocks"
    return refuse_types(CONVERTIBLE, node, a) or refuse_types(FLOATS, b)


def lower(builder: Builder, node: Tensor) -> None:
    a, b = node.src
    assert a is not None and b is not None
    if b.ne[0] == node.ne[0]:
        repeat = "row"
    else:
        repeat = "scalar" if b.ne[0] == 1 else "tile"
    if SIZES[node.type].block_size > 1:
        room = builder.thread_scratch(WRITE_ROOM + 4 * node.ne[0])
        each = int(repeat == "row")
        builder.step(
            Spec("elementwise", "add_to_blocks", (layout_of(node), layout_of(a), layout_of(b))),
            node,
            (a, b),
            args=AddArgs(each),
            writes=[room],
        )
        return
    builder.step(
        Spec("elementwise", "binary", (NAMES[Op(node.op)], repeat, layout_of(node), layout_of(a), layout_of(b))),
        node,
        (a, b),
    )


def function(name):
    import operator

    op = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}[name]

    @inline
    def apply(x, y):
        return op(x, y)

    return apply


def binary(name, repeat, kind_d, kind_a, kind_b):
    """-> kernel; `repeat`: a row of the second operand is a "row" as long as the first's, a "scalar", or a "tile"."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    f = function(name)
    rows, ne0, piece = record.rows("dst"), record.field("dst.ne"), record.piece
    d, a, b = record.row("dst"), record.row("src0"), record.row_repeated("src1")
    store, load, load_b = convert.storer(kind_d), convert.loader(kind_a), convert.loader(kind_b)
    nbd, nba, nbb, tile = (record.field(n) for n in ("dst.nb", "src0.nb", "src1.nb", "src1.ne"))

    def kernel(step, ith, nth, thread):
        n, count = ne0(step), rows(step)
        size = piece(count, n, nth)
        pieces = (n + size - 1) // size
        sd, sa, sb = nbd(step), nba(step), nbb(step)
        for item in range(count * pieces * ith // nth, count * pieces * (ith + 1) // nth):
            row, begin = item // pieces, item % pieces * size
            end = min(n, begin + size)
            z, x, y = d(step, row), a(step, row), b(step, row)
            if repeat == "tile":
                period = tile(step)
                i = begin
                while i < end:
                    j = i % period
                    k = min(16, end - i, period - j)
                    store(z, i, f(load(x, i, k, sa), load_b(y, j, k, sb)), k, sd)
                    i += k
            elif repeat == "scalar":
                w = v.splat_f32(v.lane(load_b(y, 0, 1, sb), 0))
                for i in range(begin, end, 16):
                    k = min(16, end - i)
                    store(z, i, f(load(x, i, k, sa), w), k, sd)
            else:
                for i in range(begin, end, 16):
                    k = min(16, end - i)
                    store(z, i, f(load(x, i, k, sa), load_b(y, i, k, sb)), k, sd)

    return kernel


class AddArgs(NamedTuple):
    """each: 1 = b has a number for each element, 0 = one a row."""

    each: int


def add_to_blocks(kind_d, kind_a, kind_b):
    """-> kernel: a + b, quantised again. scratch: WRITE_ROOM and a row of F32 a thread. Takes AddArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record, step_args

    U = v.U
    quantise, load, load_b = convert.quantiser(kind_d), convert.loader(kind_a), convert.loader(kind_b)
    put = convert.storer("f32")
    rows, ne0, each = record.rows("dst"), record.field("dst.ne"), step_args.readers(AddArgs).each
    d, a, b = record.row("dst"), record.row("src0"), record.row_repeated("src1")
    nbb, room = record.field("src1.nb"), record.thread_room()

    def kernel(step, ith, nth, thread):
        n, count, sb, work = ne0(step), rows(step), nbb(step), room(step, thread)
        line = work + U(WRITE_ROOM)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            x, y = a(step, row), b(step, row)
            one = v.splat_f32(v.lane(load_b(y, 0, 1, sb), 0))
            for i in range(0, n, 16):
                other = load_b(y, i, 16, sb) if each(step) != 0 else one
                put(line, i, load(x, i, 16, 0) + other, 16, 4)
            quantise(d(step, row), line, 4, 0, n, 0, work)

    return kernel
