"""DIAG_MASK_INF and DIAG_MASK_ZERO: what lies right of a diagonal is hidden.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_diag_mask_f32.
"""

from __future__ import annotations

import math

import numpy as np

from pyggml.backend.reference.values import not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], source(node, 0))


def diag_mask(node: Tensor) -> None:
    x = read(source(node, 0))
    row, column = np.ogrid[: x.shape[2], : x.shape[3]]
    hidden = -math.inf if node.op == Op.DIAG_MASK_INF else 0.0
    write(node, np.where(column > node.param_i32(0) + row, hidden, x))


REFERENCE_OPS = dict.fromkeys((Op.DIAG_MASK_INF, Op.DIAG_MASK_ZERO), (refuse, diag_mask))
