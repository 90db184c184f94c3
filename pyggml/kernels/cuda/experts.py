"""Which matrix a block of threads multiplies with: by its place in the batch, or by a number that a list gives.

The part of products that MUL_MAT_ID adds to MUL_MAT; must not know how a product is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.kernels.cuda.layout import source
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.backend.cuda.plan import Builder
    from pyggml.kernels.cuda.spec import Place
    from pyggml.tensor import Tensor


def lists(builder: Builder, node: Tensor) -> tuple[int | Place, ...]:
    """Arguments: the lists' address (0: there are none) and strides, numbers a list, rows of b that they share, how many
    matrices there are, and where a number out of range is told."""
    if node.op != Op.MUL_MAT_ID:
        return (0,) * 8
    a, b, ids = (source(node, i) for i in range(3))
    return (ids.data, *ids.nb[:2], ids.ne[0], b.ne[1], a.ne[2], builder.number + 1, builder.status())


def batches(node: Tensor) -> int:
    """How many products with one matrix there are."""
    b = source(node, 1)
    return node.ne[1] * node.ne[2] if node.op == Op.MUL_MAT_ID else b.ne[2] * b.ne[3]


def columns(node: Tensor) -> int:
    """Columns of each."""
    return 1 if node.op == Op.MUL_MAT_ID else source(node, 1).ne[1]


def chosen():
    """-> f(z, ids, ...): matrix, row of b, slot, token of list entry z; -1 as the matrix where the number is out of range."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def choose(z, ids, ids0, ids1, used, shared, limit, number, status):
        token = d.udiv(z, used)
        slot = d.i32(z - token * used)
        which = d.ld_i32(ids + slot * ids0 + token * ids1)
        if which < 0 or which >= limit:
            if d.thread() == 0:
                d.st_i32x4(status, number, which, which >> 31, limit)
            which = d.i32(-1)
        return which, d.urem(slot, shared), slot, token

    return choose
