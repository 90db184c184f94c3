"""FILL, ARANGE, TRI, DIAG: tensors made of one number, of a sequence, or of a part of each row.

Knows no arithmetic beyond start + step * i. Sources: ggml-cpu/ops.cpp: ggml_compute_forward_fill_f32,
ggml_compute_forward_arange_f32, ggml_compute_forward_tri_f32, ggml_compute_forward_diag_f32.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import FLOATS, layout_of, refuse_types
from pyggml.kernels.cpu.pad import SINGLE
from pyggml.ops import Op, TriType
from pyggml.tensor import NO_PARAMS

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor

STRETCHES: dict[TriType | None, tuple[int | None, int | None]] = {
    TriType.UPPER_DIAG: (0, None),
    TriType.UPPER: (1, None),
    TriType.LOWER_DIAG: (None, 1),
    TriType.LOWER: (None, 0),
    None: (0, 1),
}
"""What is kept of row i: from i + the one to i + the other; None = the row's end. None among the keys is DIAG."""


def why_not(node: Tensor) -> str | None:
    if node.op == Op.FILL:
        return refuse_types(FLOATS, node)
    if node.op == Op.ARANGE:
        return refuse_types([GGMLType.F32], node)
    return refuse_types(SINGLE, node, node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    if node.op == Op.FILL:
        builder.step(Spec("fill", "fill", (layout_of(node),)), node)
    elif node.op == Op.ARANGE:
        builder.step(Spec("fill", "arange", (layout_of(node),)), node)
    else:
        low, high = STRETCHES[None if node.op == Op.DIAG else TriType(node.param_i32(0))]
        args = KeptArgs(
            low_by=int(low is not None), low_plus=low or 0,
            high_by=int(high is not None), high_plus=node.ne[0] if high is None else high,
            row_by=int(node.op != Op.DIAG), size=SIZES[node.type].type_size,
        )  # fmt: skip
        builder.step(Spec("fill", "kept"), node, (node.src[0],), args=args)


def zeros(builder: Builder, to: Tensor) -> None:
    """A step that fills `to` with zeros, whatever the node that is being lowered has as parameters."""
    node = builder.node
    plain = copy.copy(to)
    plain.op_params = NO_PARAMS
    builder.node = plain
    builder.step(Spec("fill", "fill", (layout_of(to),)), to)
    builder.node = node


def fill(kind_d):
    """-> kernel."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    store, value, d = convert.storer(kind_d), record.param_f32(0), record.row("dst")
    rows, n0, nbd, piece = record.rows("dst"), record.field("dst.ne"), record.field("dst.nb"), record.piece

    def kernel(step, ith, nth, thread):
        n, count, sd, x = n0(step), rows(step), nbd(step), v.splat_f32(value(step))
        size = piece(count, n, nth)
        pieces = (n + size - 1) // size
        for item in range(count * pieces * ith // nth, count * pieces * (ith + 1) // nth):
            to, begin = d(step, item // pieces), item % pieces * size
            end = min(n, begin + size)
            for i in range(begin, end, 16):
                store(to, i, x, min(16, end - i), sd)

    return kernel


def arange(kind_d):
    """-> kernel."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    store, start, stride, d = convert.storer(kind_d), record.param_f32(0), record.param_f32(2), record.row("dst")
    n0, nbd, numbers = record.field("dst.ne"), record.field("dst.nb"), v.constant("f32", [float(i) for i in range(16)])

    def kernel(step, ith, nth, thread):
        n, sd, to = n0(step), nbd(step), d(step, 0)
        first, by = v.splat_f32(start(step)), v.splat_f32(stride(step))
        groups = (n + 15) // 16
        for group in range(groups * ith // nth, groups * (ith + 1) // nth):
            i = 16 * group
            x = v.fma(v.splat_f32(v.np.float32(i)) + numbers(), by, first)
            store(to, i, x, min(16, n - i), sd)

    return kernel


class KeptArgs(NamedTuple):
    """The stretch of row i begins at low_by * i + low_plus and ends at high_by * i + high_plus; the source's row is row_by
    * i. size: bytes an element."""

    low_by: int
    low_plus: int
    high_by: int
    high_plus: int
    row_by: int
    size: int


def kept():
    """-> kernel: of row i of the result a stretch comes from the source, the rest is 0. Takes KeptArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record, step_args

    U, move, clear = v.U, convert.move_elements, convert.clear_elements
    low_by, low_plus, high_by, high_plus, row_by, size_of = step_args.readers(KeptArgs)
    n0, n1, n2 = (record.field("dst.ne", i) for i in range(3))
    d, a, rows = record.row("dst"), record.element("src0"), record.rows("dst")
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    def kernel(step, ith, nth, thread):
        n, count, size, sd, sa = n0(step), rows(step), size_of(step), nbd(step), nba(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            i1, i2, i3 = row % n1(step), row // n1(step) % n2(step), row // n1(step) // n2(step)
            low, high = i1 * low_by(step) + low_plus(step), i1 * high_by(step) + high_plus(step)
            to, source = d(step, row), a(step, 0, i1 * row_by(step), i2, i3)
            clear(to, sd, low, size)
            move(to + U(low * sd), sd, source + U(low * sa), sa, high - low, size)
            clear(to + U(high * sd), sd, n - high, size)

    return kernel
