"""Attention of a micro-batch's tokens over themselves, where nothing is kept: a token sees those of its own sequence.

Owns the mask and the order of nodes (llama-graph.cpp: build_attn_inp_no_cache, build_attn_mha); knows no layer's weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.memory.ubatch import Ubatch
from pyggml.memory.window import Window
from pyggml.tensor import Tensor


def attend_uncached(
    il: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, fused: bool, scale: float, softcap: float = 0.0,
    sinks: Tensor | None = None, max_bias: float = 0.0, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """q (head_k, n_head, n_tokens), k (head_k, n_head_kv, n_tokens), v (head_v, n_head_kv, n_tokens), mask (n_tokens seen,
    n_tokens), F16 for fused attention and else F32, bias (n_tokens seen, n_tokens, n_head), not for fused attention
    -> (head_v * n_head, n_tokens)."""
    n_tokens = q.ne[2]
    q, k, v = (ops.permute(x, 0, 2, 1, 3) for x in (q, k, v))
    if fused:
        k, v = (ops.cpy(x, Tensor(GGMLType.F16, x.ne)) for x in (k, v))
        cur = ops.flash_attn_ext(q, k, v, mask, scale, max_bias, softcap, sinks, name=f"fattn-{il}")
        return ops.reshape(cur, cur.ne[0] * cur.ne[1], n_tokens, name=f"kqv_out-{il}")
    kq = ops.mul_mat(k, q, name=f"kq-{il}")
    if softcap:
        kq = ops.unary(ops.scale(kq, scale / softcap), ops.UnaryOp.TANH)
        kq, scale = ops.scale(kq, softcap), 1.0
    if bias is not None:
        kq = ops.add(kq, bias, name=f"kq_plus_kq_b-{il}")
    kq = ops.soft_max(kq, mask, scale, max_bias, sinks=sinks, name=f"kq_soft_max-{il}")
    kqv = ops.mul_mat(ops.cont(ops.permute(v, 1, 0, 2, 3)), kq, name=f"kqv-{il}")
    return ops.cont(ops.permute(kqv, 0, 2, 1, 3), v.ne[0] * q.ne[2], n_tokens, name=f"kqv_out-{il}")


def mask_of(ub: Ubatch, causal: bool, window: Window | None, distances: bool) -> NDArray[np.float32]:
    """Row i: -inf where token i does not see another; else 0, or with `distances`, for ALiBi, minus how far it is away."""
    pos = ub.pos.astype(np.int64)
    seen, by = pos[None, :], pos[:, None]
    shown = ub.seq[None, :] == ub.seq[:, None]
    if causal:
        shown &= seen <= by
    if window is not None:
        shown &= window.shows(seen, by)
    value = -np.abs(seen - by).astype(np.float32) if distances else np.float32(0)
    return np.where(shown, value, np.float32("-inf")).astype(np.float32)
