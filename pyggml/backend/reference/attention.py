"""FLASH_ATTN_EXT: attention of each query over keys and values.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_flash_attn_ext_f16_one_chunk.
"""

from __future__ import annotations

import math

import numpy as np

from pyggml.backend.reference.soft_max import alibi_slopes, tiled_mask
from pyggml.backend.reference.values import Values, not_among, option, read, source, write
from pyggml.ops import Op
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among(QUANTS, source(node, 1), source(node, 2))


def attend(scores: Values, v: Values, bias: Values, softcap: float, sink: float | None) -> Values:
    """One query: scores (n_kv,), v (n_kv, head), bias (n_kv,) -> (head,).

    A key whose bias is -inf is not looked at, whatever it and its value hold; a query without any key gives zeros.
    """
    seen = bias != -math.inf
    s, v = scores[seen], v[seen]
    if softcap != 0.0:
        s = softcap * np.tanh(s)
    s = s + bias[seen]
    top = max(s.max(initial=-math.inf), -math.inf if sink is None else sink)
    e = np.exp(s - top)
    total = e.sum() + (0.0 if sink is None else np.exp(sink - top))
    return e @ v / total if total != 0.0 else np.zeros(v.shape[1])


def flash_attn_ext(node: Tensor) -> None:
    q, k, v = (read(source(node, i)) for i in range(3))
    scale, max_bias, softcap = (node.param_f32(i) for i in range(3))
    mask, sinks = option(node, 3), option(node, 4)
    n_batch, n_head, n_tokens, _ = q.shape
    n_kv = k.shape[2]
    slopes = alibi_slopes(n_head, max_bias)
    bias = np.zeros((n_batch, n_head, n_tokens, n_kv))
    if mask is not None:
        bias = slopes[:, None, None] * tiled_mask(mask, n_batch, n_head, n_tokens)[..., :n_kv]
    sink_of = None if sinks is None else read(sinks).reshape(n_head)
    if softcap != 0.0:
        scale /= softcap
    result = np.empty((n_batch, n_tokens, n_head, v.shape[3]))
    for i3, h, t in np.ndindex(n_batch, n_head, n_tokens):
        keys = k[i3, h // (n_head // k.shape[1])]
        values = v[i3, h // (n_head // v.shape[1])]
        sink = None if sink_of is None else float(sink_of[h])
        result[i3, t, h] = attend(keys @ q[i3, h, t] * scale, values, bias[i3, h, t], softcap, sink)
    write(node, result)


REFERENCE_OPS = {Op.FLASH_ATTN_EXT: (refuse, flash_attn_ext)}
