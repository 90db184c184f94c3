"""CONCAT: one tensor behind the other.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_concat.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.host import view_of
from pyggml.backend.reference.values import source
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return None


def concat(node: Tensor) -> None:
    parts = [view_of(source(node, i)) for i in range(2)]
    view_of(node)[...] = np.concatenate(parts, axis=3 - node.param_i32(0))  # whole blocks are axis 3 of block types


REFERENCE_OPS = {Op.CONCAT: (refuse, concat)}
