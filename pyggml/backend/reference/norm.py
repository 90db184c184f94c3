"""NORM, RMS_NORM, L2_NORM, GROUP_NORM: what makes rows the same size.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_norm_f32, _rms_norm_f32, _l2_norm_f32, _group_norm_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.reference.values import Values, not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], source(node, 0))


def rms_norm(node: Tensor) -> None:
    x, eps = read(source(node, 0)), node.param_f32(0)
    mean = np.mean(x * x, axis=-1, keepdims=True)
    write(node, x * (1.0 / np.sqrt(mean + eps)))


def centred(x: Values, axes: tuple[int, ...], eps: float) -> Values:
    """x less its mean, over its standard deviation."""
    y = x - np.mean(x, axis=axes, keepdims=True)
    result: Values = y / np.sqrt(np.mean(y * y, axis=axes, keepdims=True) + eps)
    return result


def norm(node: Tensor) -> None:
    write(node, centred(read(source(node, 0)), (-1,), node.param_f32(0)))


def l2_norm(node: Tensor) -> None:
    """fmax drops a NaN: the row's other elements are divided by eps."""
    x, eps = read(source(node, 0)), node.param_f32(0)
    write(node, x / np.fmax(np.sqrt(np.sum(x * x, axis=-1, keepdims=True)), eps))


def group_norm(node: Tensor) -> None:
    x, n_groups, eps = read(source(node, 0)), node.param_i32(0), node.param_f32(1)
    size = -(-x.shape[1] // n_groups)
    groups = [x[:, i : i + size] for i in range(0, x.shape[1], size)]
    write(node, np.concatenate([centred(g, (1, 2, 3), eps) for g in groups], axis=1))


REFERENCE_OPS = {
    Op.NORM: (refuse, norm),
    Op.RMS_NORM: (refuse, rms_norm),
    Op.L2_NORM: (refuse, l2_norm),
    Op.GROUP_NORM: (refuse, group_norm),
}
