"""MUL_MAT, MUL_MAT_ID, OUT_PROD: products of dequantised values in float64.

ggml converts the second operand of MUL_MAT to the first one's partner type before it multiplies; that rounding is no
part of the meaning. Sources: ggml-cpu/ggml-cpu.c: ggml_compute_forward_mul_mat, ggml_compute_forward_mul_mat_id;
ggml-cpu/ops.cpp: ggml_compute_forward_out_prod.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.reference.rows import row_numbers
from pyggml.backend.reference.values import Values, not_among, read, source, write
from pyggml.ops import Op
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among(QUANTS, source(node, 0), source(node, 1))


def over_batch(a: Values, b: Values) -> Values:
    """a repeated over b's batch: neighbours share a matrix, i2 of b takes i2 // ratio of a."""
    for axis in (0, 1):
        a = np.repeat(a, b.shape[axis] // a.shape[axis], axis=axis)
    return a


def mul_mat(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    write(node, b @ over_batch(a, b).swapaxes(2, 3))


def mul_mat_id(node: Tensor) -> None:
    """Row (slot, token) is b's row of that number, slots repeated, times the matrix that the ids name."""
    a, b = read(source(node, 0))[0], read(source(node, 1))[0]
    numbers = row_numbers(node, source(node, 2), a.shape[0])[0]
    result = np.empty(node.ne[2::-1])
    for token, slot in np.ndindex(numbers.shape):
        result[token, slot] = a[numbers[token, slot]] @ b[token, slot % b.shape[1]]
    write(node, result[None])


def out_prod(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    write(node, b.swapaxes(2, 3) @ over_batch(a, b))


REFERENCE_OPS = {Op.MUL_MAT: (refuse, mul_mat), Op.MUL_MAT_ID: (refuse, mul_mat_id), Op.OUT_PROD: (refuse, out_prod)}
