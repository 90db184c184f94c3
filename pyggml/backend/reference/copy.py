"""CPY CONT DUP: elements in order into another shape, type or stride.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_dup.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.host import view_of
from pyggml.backend.reference.values import encode, not_among, read, source
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.quants import QUANTS, quantizable
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    a = source(node, 0)
    if a.type == node.type:
        return None  # bytes move, values do not matter
    if {a.type, node.type} == {GGMLType.F32, GGMLType.I32}:
        return None
    return not_among(QUANTS, a) or not_among(quantizable(), node)


def copy(node: Tensor) -> None:
    """The n-th element of the source becomes the n-th of the result, ne0 running fastest."""
    a, target = source(node, 0), view_of(node)
    if a.type == node.type:
        target[...] = view_of(a).reshape(target.shape)
    elif node.type == GGMLType.I32:
        x = np.trunc(read(a)).reshape(target.shape)
        fits = (x >= -(2.0**31)) & (x < 2.0**31)
        target[...] = np.where(fits, x, -(2.0**31)).astype(np.int32)  # the rest is -2^31, as on x86
    else:
        target[...] = encode(node.type, read(a).reshape(node.ne[::-1]))


REFERENCE_OPS = dict.fromkeys((Op.CPY, Op.CONT, Op.DUP), (refuse, copy))
