"""SOLVE_TRI: forward substitution.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_solve_tri_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.reference.values import not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return "the result is not contiguous" if not node.is_contiguous else not_among([GGMLType.F32], node)


def solve_tri(node: Tensor) -> None:
    a, x = read(source(node, 0)), read(source(node, 1))
    for i in range(a.shape[2]):
        known = np.einsum("abt,abtk->abk", a[:, :, i, :i], x[:, :, :i])
        x[:, :, i] = (x[:, :, i] - known) / a[:, :, i, i, None]
    write(node, x)


REFERENCE_OPS = {Op.SOLVE_TRI: (refuse, solve_tri)}
