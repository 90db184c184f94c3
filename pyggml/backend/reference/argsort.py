"""ARGSORT, TOP_K: numbers of elements in the order of their values.

ggml leaves the order of equal values and of NaNs open: here the lower number is first, and NaNs are last.
Sources: ggml-cpu/ops.cpp: ggml_compute_forward_argsort, ggml_compute_forward_top_k.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.host import view_of
from pyggml.backend.reference.values import read, source
from pyggml.ops import Op, SortOrder
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return None  # the rules of these ops say all


def argsort(node: Tensor) -> None:
    x = read(source(node, 0))
    if node.op == Op.TOP_K or node.param_i32(0) == SortOrder.DESC:
        x = -x
    view_of(node)[...] = np.argsort(x, axis=-1, kind="stable")[..., : node.ne[0]]


REFERENCE_OPS = dict.fromkeys((Op.ARGSORT, Op.TOP_K), (refuse, argsort))
