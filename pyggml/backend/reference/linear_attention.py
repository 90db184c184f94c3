"""GATED_LINEAR_ATTN, RWKV_WKV6, RWKV_WKV7: a state of S x S numbers a head that each token changes.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_gla_f32, ggml_compute_forward_rwkv_wkv6_f32,
ggml_compute_forward_rwkv_wkv7_f32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyggml.backend.reference.values import Values, read, source, write
from pyggml.ops import Op
from pyggml.tensor import Tensor

Step = Callable[[Values, int], tuple[Values, Values]]
"""(states (H, S, S), token) -> states, outputs (H, S)."""


def run(node: Tensor, state: Tensor, shape: tuple[int, int, int, int], step: Step) -> None:
    """The tokens of each sequence in turn, from its own state."""
    size, heads, tokens, _ = shape
    sequences = state.ne[1]
    states = read(state).reshape(sequences, heads, size, size)
    outputs = np.empty((tokens, heads, size))
    each = tokens // sequences
    for t in range(tokens):
        states[t // each], outputs[t] = step(states[t // each], t)
    write(node, np.concatenate([outputs.ravel(), states.ravel()]).reshape(1, 1, -1, size * heads))


def inputs(node: Tensor, n: int) -> list[Values]:
    """Sources 0 to n - 1, (T, H, S) each."""
    return [read(source(node, i))[0] for i in range(n)]


def gated_linear_attn(node: Tensor) -> None:
    k, v, q, g = inputs(node, 4)
    scale = node.param_f32(0)

    def step(s: Values, t: int) -> tuple[Values, Values]:
        s = s * g[t][:, :, None] + k[t][:, :, None] * v[t][:, None, :]
        return s, np.einsum("hij,hi->hj", s, q[t] * scale)

    run(node, source(node, 4), source(node, 0).ne, step)


def rwkv_wkv6(node: Tensor) -> None:
    k, v, r = inputs(node, 3)
    bonus, decay = read(source(node, 3)).reshape(k.shape[1:]), read(source(node, 4))[0]

    def step(s: Values, t: int) -> tuple[Values, Values]:
        kv = k[t][:, :, None] * v[t][:, None, :]
        out = np.einsum("hij,hi->hj", s + kv * bonus[:, :, None], r[t])
        return s * decay[t][:, :, None] + kv, out

    run(node, source(node, 5), source(node, 0).ne, step)


def rwkv_wkv7(node: Tensor) -> None:
    r, w, k, v, a, b = inputs(node, 6)

    def step(s: Values, t: int) -> tuple[Values, Values]:
        sa = np.einsum("hij,hj->hi", s, a[t])
        s = s * w[t][:, None, :] + v[t][:, :, None] * k[t][:, None, :] + sa[:, :, None] * b[t][:, None, :]
        return s, np.einsum("hij,hj->hi", s, r[t])

    run(node, source(node, 6), source(node, 0).ne, step)


def refuse(node: Tensor) -> str | None:
    return None


REFERENCE_OPS = {
    Op.GATED_LINEAR_ATTN: (refuse, gated_linear_attn),
    Op.RWKV_WKV6: (refuse, rwkv_wkv6),
    Op.RWKV_WKV7: (refuse, rwkv_wkv7),
}
