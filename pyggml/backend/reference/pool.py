"""POOL_1D, POOL_2D: what the elements of each window become.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_pool_1d_ksp, ggml_compute_forward_pool_2d.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.reference.values import Values, not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op, PoolOp
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32, GGMLType.F16], source(node, 0))


def pool_1d(node: Tensor) -> None:
    kind, k, s, p = (node.param_i32(i) for i in range(4))
    _pool(node, kind, (k, 1), (s, 1), (p, 0), None)


def pool_2d(node: Tensor) -> None:
    kind, k0, k1, s0, s1, p0, p1 = (node.param_i32(i) for i in range(7))
    _pool(node, kind, (k0, k1), (s0, s1), (p0, p1), k0 * k1)


def _pool(
    node: Tensor, kind: int, k: tuple[int, int], s: tuple[int, int], p: tuple[int, int], divisor: int | None
) -> None:
    """`divisor` of a sum, or None: the number of elements inside."""
    x = read(source(node, 0))
    y = np.zeros(tuple(reversed(node.ne)))
    for i0, i1 in np.ndindex(node.ne[:2]):
        begin0, begin1 = i0 * s[0] - p[0], i1 * s[1] - p[1]
        inside = x[:, :, max(begin1, 0) : max(begin1 + k[1], 0), max(begin0, 0) : max(begin0 + k[0], 0)]
        window = inside.reshape(*x.shape[:2], -1)
        if kind == PoolOp.MAX:
            y[:, :, i1, i0] = _largest(window)
        elif divisor or window.shape[-1]:
            y[:, :, i1, i0] = window.sum(axis=-1) / (divisor or window.shape[-1])
    write(node, y)


def _largest(window: Values) -> Values:
    found = np.full(window.shape[:2], float(np.finfo(np.float32).min))
    for i in range(window.shape[-1]):
        found = np.where(window[..., i] < found, found, window[..., i])  # a NaN is less than nothing, nor is it more
    return found


REFERENCE_OPS = {Op.POOL_1D: (refuse, pool_1d), Op.POOL_2D: (refuse, pool_2d)}
