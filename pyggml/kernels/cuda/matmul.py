"""MUL_MAT, MUL_MAT_ID: which kernel takes a product. Knows shapes, types and addresses.

Few columns: rows of weights are read once, straight from their blocks (matvec.py). More: tensor cores (mma.py), where the
GPU has those that are used here. What is left, odd strides above all: `tile.py`, which reads element by element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.kernels.cuda import matvec, mma, tile
from pyggml.kernels.cuda.blocks import READ
from pyggml.kernels.cuda.layout import F32, FLOATS, disjoint, option, refuse, refuse_types, source
from pyggml.ops import GluOp, Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

GATES = (GluOp.REGLU, GluOp.GEGLU, GluOp.SWIGLU)
"""The GLUs that a product does by itself."""


def why_not(node: Tensor) -> str | None:
    a, b = source(node, 0), source(node, 1)
    if node.nelements and a.ne[0] == 0:
        return "rows are empty"
    if node.op == Op.MUL_MAT_ID:
        if node.nelements and a.ne[2] == 0:
            return "there are no matrices"
        reason = refuse(source(node, 2))
        if reason is not None:
            return reason
    return refuse_types(READ, a, by_matrix=True) or refuse_types(FLOATS, b) or refuse_types([F32], node)


def lower(builder: Builder, node: Tensor) -> None:
    a, b = source(node, 0), source(node, 1)
    many = b.type == F32 and mma.takes(builder.cc, node, a, b)
    if many and node.op == Op.MUL_MAT_ID:
        mma.lower(builder, node, a, b)
    elif b.type == F32 and matvec.takes(node, a, b):
        matvec.lower(builder, node, a, b, node)
    elif many:
        mma.lower(builder, node, a, b)
    else:
        tile.lower(builder, node, a, b)


def lower_fused(builder: Builder, nodes: list[Tensor]) -> bool:
    """Few columns, then ADD; or two products with the same columns, then their GLU. The bits are those of single launches."""
    return with_sum(builder, *nodes) if len(nodes) == 2 else with_gate(builder, *nodes)


def fits(product: Tensor, result: Tensor) -> bool:
    """Whether matvec.py takes the product, without batches, and may put what is made of it there."""
    a, b = source(product, 0), source(product, 1)
    plain = b.type == F32 and result.type == F32 and result.ne == product.ne and product.ne[2:] == (1, 1)
    # blocks meet a copy of b, in bytes; the place of b itself may have been given to the result
    return plain and result.nb[0] == 4 and matvec.takes(product, a, b) and (a.type not in FLOATS or disjoint(result, b))


def with_sum(builder: Builder, product: Tensor, total: Tensor) -> bool:
    """A bias, or the other side of a residual."""
    if not fits(product, total):
        return False
    x, y = source(total, 0), source(total, 1)
    added = y if x is product else x
    row = (product.ne[0], 1, 1, 1)
    if added is product or added.type != F32 or added.nb[0] != 4 or refuse(added):
        return False
    if (
        added.ne == product.ne
        and not disjoint(total, added)
        and not (total.data == added.data and total.nb == added.nb)
    ):
        return False
    if added.ne != product.ne and (added.ne != row or added is x or not disjoint(total, added)):
        return False
    ending = matvec.Ending(added.data, added.nb[1] if added.ne == product.ne else 0)
    matvec.lower(builder, product, source(product, 0), source(product, 1), total, ending)
    return True


def with_gate(builder: Builder, first: Tensor, second: Tensor, result: Tensor) -> bool:
    gate, up = source(result, 0), option(result, 1)
    if up is None or {id(gate), id(up)} != {id(first), id(second)} or result.param_i32(0) not in GATES:
        return False
    a, b, c = source(gate, 0), source(gate, 1), source(up, 0)
    if source(up, 1) is not b or (c.type, c.ne) != (a.type, a.ne) or not fits(gate, result) or not fits(up, result):
        return False
    ending = matvec.Ending(up=c.data, up1=c.nb[1], glu=result.param_i32(0))
    matvec.lower(builder, gate, a, b, result, ending)
    return True
