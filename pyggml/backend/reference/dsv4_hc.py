"""DSV4_HC_COMB, DSV4_HC_PRE, DSV4_HC_POST: several streams of embeddings a token, mixed.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_dsv4_hc_comb_f32, ggml_compute_forward_dsv4_hc_pre_f32,
ggml_compute_forward_dsv4_hc_post_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.reference.values import not_among, option, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], node)


def comb(node: Tensor) -> None:
    """Matrices (token, source, result)."""
    eps, n_iter = node.param_f32(0), node.param_i32(1)
    mixes, scale, base = (read(source(node, i)) for i in range(3))
    m = (mixes[0, 0] * scale[0, 0, 0, 2] + base[0, 0, 0])[:, 8:].reshape(-1, 4, 4)
    m = np.exp(m - m.max(axis=2, keepdims=True))
    m = m / m.sum(axis=2, keepdims=True) + eps
    m = m / (m.sum(axis=1, keepdims=True) + eps)
    for _ in range(n_iter - 1):
        m = m / (m.sum(axis=2, keepdims=True) + eps)
        m = m / (m.sum(axis=1, keepdims=True) + eps)
    write(node, m[None])


def pre(node: Tensor) -> None:
    """x (token, stream, element)."""
    x, weights = read(source(node, 0))[0], read(source(node, 1))
    each = 1 / (1 + np.exp(-weights[0])) if node.param_i32(1) else weights[0, 0][:, :, None]
    write(node, node.param_f32(0) * (x * each).sum(axis=1)[None, None])


def post(node: Tensor) -> None:
    x, residual, weights = (read(source(node, i))[0] for i in range(3))
    mixes = option(node, 3)
    kept = residual if mixes is None else np.einsum("tse,tsd->tde", residual, read(mixes)[0])
    write(node, (x[0][:, None] * weights[0][:, :, None] + kept)[None])


REFERENCE_OPS = {Op.DSV4_HC_COMB: (refuse, comb), Op.DSV4_HC_PRE: (refuse, pre), Op.DSV4_HC_POST: (refuse, post)}
