"""GATED_DELTA_NET: linear attention that overwrites what it finds under a key.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_gated_delta_net_one_chunk.
"""

from __future__ import annotations

import math

import numpy as np

from pyggml.backend.host import view_of
from pyggml.backend.reference.values import not_among, read, source
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return "the result is not contiguous" if not node.is_contiguous else not_among([GGMLType.F32], node)


def gated_delta_net(node: Tensor) -> None:
    """S (seqs, heads, element of v, element of k). What there are no tokens for is left as it is."""
    q, k, v, g, beta, s = (read(source(node, i)) for i in range(6))
    slots, target = node.param_i32(0), view_of(node).reshape(-1)
    n_seqs, n_tokens, n_head, head = v.shape
    q, k = (np.repeat(t, n_seqs // t.shape[0], axis=0)[:, :, np.arange(n_head) % t.shape[2]] for t in (q, k))
    y, kept = target[: v.size].reshape(v.shape), target[v.size :].reshape(slots, *s.shape)
    if n_tokens == 0 and slots == 1:
        kept[0] = s
    for t in range(n_tokens):
        s = s * np.exp(g[:, t])[:, :, None, :]
        delta = (v[:, t] - np.einsum("bhji,bhi->bhj", s, k[:, t])) * beta[:, t]
        s = s + delta[..., None] * k[:, t, :, None, :]
        y[:, t] = np.einsum("bhji,bhi->bhj", s, q[:, t]) / math.sqrt(head)
        if n_tokens - 1 - t < slots:
            kept[n_tokens - 1 - t] = s


REFERENCE_OPS = {Op.GATED_DELTA_NET: (refuse, gated_delta_net)}
