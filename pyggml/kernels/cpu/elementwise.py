"""ADD, SUB, MUL, DIV with broadcasting: rows of the second operand are repeated over the first.

Owns arithmetic between two tensors; functions of one tensor are in unary.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.backend.cpu import Builder
    from pyggml.tensor import Tensor

NAMES = {Op.ADD: "add", Op.SUB: "sub", Op.MUL: "mul", Op.DIV: "div"}


def why_not(node: Tensor) -> str | None:
    for t in (node, *node.src):
        assert t is not None
        if t.type != GGMLType.F32:
            return f"{Op(node.op).name} of {t.type.name}"
        if t.nb[0] != 4 and t.ne[0] != 1:
            return f"{Op(node.op).name} of rows that are not dense"
    return None


def lower(builder: Builder, node: Tensor) -> None:
    b = node.src[1]
    assert b is not None
    spec = Spec("elementwise", "binary", (NAMES[Op(node.op)], int(b.ne[0] == 1 and node.ne[0] > 1)))
    if b.ne[0] not in (1, node.ne[0]):
        spec = Spec("elementwise", "binary_tiled", (NAMES[Op(node.op)],))
    builder.step(spec, node, node.src)


def _function(name):
    import operator

    from pyggml import simd as v

    op = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}[name]

    @v.device
    def apply(x, y):
        return op(x, y)

    return apply


def binary(name, scalar):
    """-> kernel; `scalar`: the second operand has one element a row."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    f = _function(name)
    rows, ne0 = record.rows("dst"), record.field("dst.ne")
    d, a, b = record.row("dst"), record.row("src0"), record.row_repeated("src1")

    def kernel(step, ith, nth):
        n = ne0(step)
        count = rows(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            z, x, y = d(step, row), a(step, row), b(step, row)
            i = 0
            while i + 16 <= n:
                w = v.broadcast_f32(y) if scalar else v.load_f32(y)
                v.store(z, f(v.load_f32(x), w))
                i += 16
                z += v.U(64)
                x += v.U(64)
                y += v.U(0 if scalar else 64)
            if i < n:
                w = v.broadcast_f32(y) if scalar else v.load_f32_part(y, n - i)
                v.store_part(z, f(v.load_f32_part(x, n - i), w), n - i)

    return kernel
