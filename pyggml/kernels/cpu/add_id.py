"""ADD_ID: to each row the row of a table that its number says. Owns the loop; indices.py checks the numbers.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_add_id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.indices import NumberArgs
from pyggml.kernels.cpu.layout import refuse_types

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    for t in (node, *node.src[:2]):
        if t is not None and t.nb[0] != 4 and t.ne[0] != 1:
            return "ADD_ID: rows are not contiguous"
    return refuse_types([GGMLType.F32], node, *node.src[:2])


def lower(builder: Builder, node: Tensor) -> None:
    a, b, ids = node.src[:3]
    builder.step(Spec("add_id", "add_id"), node, (a, ids, b), args=NumberArgs())


def add_id():
    """-> kernel: dst = src0 + the rows of src2 that src1 numbers. Takes NumberArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import indices, record, step_args

    U = v.U
    bad, choose = indices.numbers_are_bad(step_args.readers(NumberArgs).wide), indices.chosen()
    limit, n0, n1 = record.field("src2.ne", 1), record.field("dst.ne"), record.field("dst.ne", 1)
    count, d, a = record.rows("dst"), record.row("dst"), record.row("src0")
    number, table = record.element("src1"), record.element("src2")

    def kernel(step, ith, nth, thread):
        if bad(step, limit(step), ith):
            return
        total, n = count(step), n0(step)
        for r in range(total * ith // nth, total * (ith + 1) // nth):
            which = choose(step, number(step, r % n1(step), r // n1(step), 0, 0), False, limit(step))
            if which < 0:
                return
            to, x, y = d(step, r), a(step, r), table(step, 0, which, 0, 0)
            for i in range(0, n, 16):
                at, left = U(4 * i), n - i
                v.store_part(to + at, v.load_f32_part(x + at, left) + v.load_f32_part(y + at, left), left)

    return kernel
