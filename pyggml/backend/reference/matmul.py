"""MUL_MAT: dot products of dequantised rows in float64. Knows nothing of how fast code approximates them.

ggml converts the second operand to the first one's partner type before it multiplies; that rounding is no part of the
meaning. Source: ggml-cpu/ggml-cpu.c: ggml_compute_forward_mul_mat.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.reference.values import FLOATS, not_among, read, source, write
from pyggml.ops import Op
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among(QUANTS, source(node, 0)) or not_among(FLOATS, source(node, 1))


def mul_mat(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    for axis in (0, 1):  # neighbours in the batch share a matrix: i2 of b takes i2 // ratio of a
        a = np.repeat(a, b.shape[axis] // a.shape[axis], axis=axis)
    write(node, b @ a.swapaxes(2, 3))


LAWS = {Op.MUL_MAT: (refuse, mul_mat)}
