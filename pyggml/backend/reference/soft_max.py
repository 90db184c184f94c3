"""SOFT_MAX of rows, with mask, ALiBi slopes and sinks, and its gradient.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_soft_max_f32, ggml_compute_forward_soft_max_ext_back_f32.
"""

from __future__ import annotations

import math

import numpy as np

from pyggml.backend.reference.values import Values, not_among, option, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def alibi_slopes(n_head: int, max_bias: float) -> Values:
    """What each head multiplies the mask with; all 1 without ALiBi."""
    if not max_bias > 0.0:
        return np.ones(n_head)
    n_head_log2 = 2 ** math.floor(math.log2(n_head))
    m0, m1 = 2.0 ** (-max_bias / n_head_log2), 2.0 ** (-max_bias / 2.0 / n_head_log2)
    return np.array([m0 ** (h + 1) if h < n_head_log2 else m1 ** (2 * (h - n_head_log2) + 1) for h in range(n_head)])


def tiled_mask(mask: Tensor, n_batch: int, n_head: int, n_rows: int) -> Values:
    """(n_batch, n_head, n_rows, columns): the mask, repeated over heads and batches; its surplus rows left out."""
    values = read(mask)[:, :, :n_rows]
    return np.tile(values, (n_batch // mask.ne[3], n_head // mask.ne[2], 1, 1))


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], source(node, 0))


def soft_max(node: Tensor) -> None:
    x = read(source(node, 0)) * node.param_f32(0)
    mask, sinks = option(node, 1), option(node, 2)
    n_batch, n_head, n_rows, _ = x.shape
    if mask is not None:
        slopes = alibi_slopes(n_head, node.param_f32(1))
        x = x + slopes[:, None, None] * tiled_mask(mask, n_batch, n_head, n_rows)
    top = x.max(axis=-1, keepdims=True)
    rest: Values | float = 0.0  # what the sinks take of the probability
    if sinks is not None:
        sink = read(sinks).reshape(n_head, 1, 1)
        top = np.maximum(top, sink)
        rest = np.exp(sink - top)
    e = np.exp(x - top)
    write(node, e / (e.sum(axis=-1, keepdims=True) + rest))


def refuse_back(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], source(node, 0), source(node, 1))


def soft_max_back(node: Tensor) -> None:
    dy, y = read(source(node, 0)), read(source(node, 1))
    write(node, (dy - (y * dy).sum(axis=-1, keepdims=True)) * y * node.param_f32(0))


REFERENCE_OPS = {Op.SOFT_MAX: (refuse, soft_max), Op.SOFT_MAX_BACK: (refuse_back, soft_max_back)}
