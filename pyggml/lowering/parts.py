"""Into how many parts a step is cut, which threads take one after the other.

Owns the estimate of what a step costs; which rows a part has is its kernel's business, and changes no bit of a result.
More parts than threads keep all busy where one of them is held up; none so long that an abort would be late; none so
short that taking it costs more than computing it.
"""

from __future__ import annotations

import math

from pyggml.ops import Op
from pyggml.tensor import Tensor

BYTES_PER_NS = 8.0
PRODUCTS_PER_NS = 32.0
"""What one thread reads and multiplies at least, on machines of today."""
SHORT_NS = 2500
"""A step that is over in this time is one part: a second thread would come too late to help."""
PART_NS = 25_000
LONG_NS = 10_000_000
"""An abort is seen before each part."""
AT_MOST = 1 << 20
REUSE = frozenset(
    {Op.MUL_MAT, Op.MUL_MAT_ID, Op.OUT_PROD, Op.FLASH_ATTN_EXT}
    | {Op.SSM_SCAN, Op.GATED_LINEAR_ATTN, Op.RWKV_WKV6, Op.RWKV_WKV7, Op.GATED_DELTA_NET}
    | {Op.LIGHTNING_INDEXER, Op.DSV4_HC_COMB, Op.DSV4_HC_POST, Op.POOL_1D, Op.POOL_2D}
)
"""Ops that multiply more numbers than they read."""


def cost_ns(node: Tensor, dst: Tensor | None, read: int) -> float:
    """What one thread needs for a step of `node`, roughly, that writes to `dst`. `read`: bytes of all its operands; elements
    count as often as they are read, also where many of them are one in memory (strides of 0)."""
    if node.op not in REUSE or (dst is None and node.op != Op.FLASH_ATTN_EXT):  # what is made of activations first
        return read / BYTES_PER_NS
    return read / BYTES_PER_NS + _products(node) / PRODUCTS_PER_NS


def _products(node: Tensor) -> int:
    """Multiplications of the ops that reuse what they read."""
    if node.op in (Op.MUL_MAT, Op.MUL_MAT_ID, Op.OUT_PROD):
        a = node.src[0]
        assert a is not None
        return node.nelements * (a.ne[1] if node.op == Op.OUT_PROD else a.ne[0])
    if node.op == Op.FLASH_ATTN_EXT:
        q, k, v = node.src[:3]
        assert q is not None and k is not None and v is not None
        return q.nrows * k.ne[1] * (q.ne[0] + v.ne[0])
    if node.op == Op.LIGHTNING_INDEXER:
        q = node.src[0]
        assert q is not None
        return node.nelements * q.ne[0] * q.ne[1]
    if node.op == Op.DSV4_HC_COMB:
        return 8 * node.nelements * node.param_i32(1)
    if node.op == Op.DSV4_HC_POST:
        return node.nelements * node.ne[1]
    if node.op in (Op.POOL_1D, Op.POOL_2D):
        a = node.src[0]
        assert a is not None
        width = min(node.param_i32(1), a.ne[0])
        return node.nelements * width * (min(node.param_i32(2), a.ne[1]) if node.op == Op.POOL_2D else 1)
    return 8 * node.nelements * max(t.ne[0] for t in node.src if t is not None)


def parts(cost: float, n_threads: int) -> int:
    """How many of a step that costs `cost` nanoseconds."""
    if cost <= SHORT_NS:
        return 1
    least = cost / LONG_NS
    if n_threads > 1:
        least = max(least, n_threads, min(cost / PART_NS, 8 * n_threads))
    return min(max(1, math.ceil(least)), AT_MOST)
