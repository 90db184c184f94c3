"""FILL, ARANGE, TRI, DIAG: tensors made of one number, of a sequence, or of a part of each row.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_fill_f32, ggml_compute_forward_arange_f32,
ggml_compute_forward_tri_f32, ggml_compute_forward_diag_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.host import ELEMENTS, view_of
from pyggml.backend.reference.values import FLOATS, not_among, source, write
from pyggml.ops import Op, TriType
from pyggml.tensor import Tensor


def refuse_fill(node: Tensor) -> str | None:
    return not_among(FLOATS, node)


def fill(node: Tensor) -> None:
    write(node, np.full(node.ne[::-1], node.param_f32(0)))


def refuse_arange(node: Tensor) -> str | None:
    return None


def arange(node: Tensor) -> None:
    write(node, (node.param_f32(0) + node.param_f32(2) * np.arange(node.ne[0])).reshape(1, 1, 1, -1))


def refuse(node: Tensor) -> str | None:
    return not_among(ELEMENTS, node)


def tri(node: Tensor) -> None:
    a = view_of(source(node, 0))
    column, row = np.arange(a.shape[3]), np.arange(a.shape[2])[:, None]
    keep = {
        TriType.UPPER_DIAG: column >= row,
        TriType.UPPER: column > row,
        TriType.LOWER_DIAG: column <= row,
        TriType.LOWER: column < row,
    }[TriType(node.param_i32(0))]
    view_of(node)[...] = np.where(keep, a, np.zeros((), a.dtype))


def diag(node: Tensor) -> None:
    a = view_of(source(node, 0))
    view_of(node)[...] = np.where(np.eye(a.shape[3], dtype=bool), a, np.zeros((), a.dtype))


REFERENCE_OPS = {
    Op.FILL: (refuse_fill, fill),
    Op.ARANGE: (refuse_arange, arange),
    Op.TRI: (refuse, tri),
    Op.DIAG: (refuse, diag),
}
