"""The rotation of heads before they are quantised: which ones are rotated, by what, and how (llama-kv-cache.cpp).

Owns the Walsh-Hadamard matrix and its use in a graph; knows no cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import SIZES, GGMLType
from pyggml.tensor import Tensor

MIN_ROTATED = 64


def k_rotation(dtype: GGMLType, head: int) -> int:
    """Elements of a head of K that are rotated together, 0 = it is kept as it is (build_input_k_rot)."""
    if SIZES[dtype].block_size == 1 or head % MIN_ROTATED:
        return 0
    return head & -head


def v_rotation(dtype: GGMLType, head: int) -> int:
    """The same for V (build_input_v_rot)."""
    return MIN_ROTATED if k_rotation(dtype, head) else 0


def hadamard(n: int) -> NDArray[np.float32]:
    """The orthonormal Walsh-Hadamard matrix (n, n), n a power of two: its own inverse (ggml_gen_hadamard)."""
    signs = np.ones((1, 1), np.float32)
    while len(signs) < n:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs * np.float32(1.0 / np.sqrt(np.float32(n)))


def hadamard_transform(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Each run of elements of x, as long as the rotation, times it."""
    if rotation is None:
        return x
    n = rotation.ne[0]
    return ops.reshape(ops.mul_mat(rotation, ops.reshape(x, n, x.nelements // n)), *x.ne)
