"""Whether each token of a result must have the bits that it has when it is computed alone.

Kernels for several columns sum in another order than those for one, which is faster and differs in the last bits. Where a text
must not depend on how many of its tokens are computed at once, the nodes that have such kernels are asked to do without. In
op_params[15], which ggml leaves free: devices that do not know it compute as they always do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pyggml.ops.numbers import Op
from pyggml.tensor import Tensor

WORD = 15
OPS = frozenset({Op.MUL_MAT, Op.MUL_MAT_ID, Op.FLASH_ATTN_EXT})


def ask_one_by_one(nodes: Iterable[Tensor]) -> None:
    """Of each of these nodes whose columns a device may compute together."""
    for node in nodes:
        if node.op in OPS:
            node.op_params = node.op_params[: 4 * WORD] + struct.pack("<i", 1)


def is_one_by_one(node: Tensor) -> bool:
    """Whether it is asked of this node."""
    return node.op in OPS and node.param_i32(WORD) != 0
