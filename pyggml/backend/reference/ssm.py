"""SSM_CONV, SSM_SCAN: what Mamba does with a sequence.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_ssm_conv_f32, ggml_compute_forward_ssm_scan_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.host import view_of
from pyggml.backend.reference.rows import row_numbers
from pyggml.backend.reference.values import Values, not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse_conv(node: Tensor) -> str | None:
    if source(node, 1).nb[0] != 4:
        return "rows of the weights are not contiguous"
    return not_among([GGMLType.F32], node, source(node, 0), source(node, 1))


def ssm_conv(node: Tensor) -> None:
    x, weights = read(source(node, 0))[0], read(source(node, 1))[0, 0]
    windows = np.lib.stride_tricks.sliding_window_view(x, weights.shape[1], axis=-1)  # (seqs, channels, tokens, width)
    write(node, np.einsum("sctw,cw->stc", windows, weights)[None] if node.nelements else np.zeros(node.ne[::-1]))


def refuse_scan(node: Tensor) -> str | None:
    if not node.is_contiguous:
        return "the result is not contiguous"
    return not_among([GGMLType.F32], node, *(source(node, i) for i in range(6)))


def softplus(x: Values) -> Values:
    return np.where(x > 20.0, x, np.log1p(np.exp(np.minimum(x, 20.0))))


def ssm_scan(node: Tensor) -> None:
    """States (seqs, heads, dims, d_state). What there are no tokens for is left as it is."""
    states, x, dt, a, b, c = (read(source(node, i)) for i in range(6))
    slots, target = node.param_i32(0), view_of(node)[0, 0, 0]
    _, n_tokens, n_head, _ = x.shape
    s = states[row_numbers(node, source(node, 6), states.shape[0])[0, 0]]
    b, c = (np.repeat(t, n_head // t.shape[2], axis=2) for t in (b, c))  # neighbours share a group
    kept = target[x.size :].reshape(slots, *s.shape)
    y = target[: x.size].reshape(x.shape)
    for t in range(n_tokens):
        step = softplus(dt[0, :, t])[..., None, None]  # (seqs, heads, 1, 1)
        s = s * np.exp(step * a[0, 0][:, None, :]) + b[:, t, :, None, :] * (x[:, t, ..., None] * step)
        y[:, t] = (s * c[:, t, :, None, :]).sum(-1)
        if n_tokens - 1 - t < slots:
            kept[n_tokens - 1 - t] = s


REFERENCE_OPS = {Op.SSM_CONV: (refuse_conv, ssm_conv), Op.SSM_SCAN: (refuse_scan, ssm_scan)}
