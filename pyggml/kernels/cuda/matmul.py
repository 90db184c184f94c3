"""MUL_MAT, MUL_MAT_ID: which kernel takes a product. Knows shapes, types and addresses; knows no instruction.

Few columns: rows of weights are read once, straight from their blocks (matvec.py). More: tensor cores (mma.py), where the
GPU has those that are used here. What is left, odd strides above all: `tile.py`, which reads element by element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.kernels.cuda import matvec, mma, tile
from pyggml.kernels.cuda.blocks import BLOCKS
from pyggml.kernels.cuda.layout import F32, FLOATS, refuse, refuse_types, source
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.backend.cuda.plan import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    a, b = source(node, 0), source(node, 1)
    if node.nelements and a.ne[0] == 0:
        return "rows without elements"
    if node.op == Op.MUL_MAT_ID:
        if node.nelements and a.ne[2] == 0:
            return "there are no matrices"
        reason = refuse(source(node, 2))
        if reason is not None:
            return reason
    return refuse_types((*FLOATS, *BLOCKS), a) or refuse_types(FLOATS, b) or refuse_types([F32], node)


def lower(builder: Builder, node: Tensor) -> None:
    a, b = source(node, 0), source(node, 1)
    if b.type == F32 and matvec.takes(node, a, b):
        matvec.lower(builder, node, a, b)
    elif b.type == F32 and node.op == Op.MUL_MAT and mma.takes(builder.cc, node, a, b):
        mma.lower(builder, node, a, b)
    else:
        tile.lower(builder, node, a, b)
