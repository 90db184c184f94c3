"""REPEAT, REPEAT_BACK: tiles of a tensor, and their sum.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_repeat_f32, ggml_compute_forward_repeat_back_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.host import ELEMENTS, view_of
from pyggml.backend.reference.values import not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among(ELEMENTS, node)


def repeat(node: Tensor) -> None:
    a, target = view_of(source(node, 0)), view_of(node)
    target[...] = np.tile(a, [n // m for n, m in zip(target.shape, a.shape, strict=True)])


def refuse_back(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], node)


def repeat_back(node: Tensor) -> None:
    a = read(source(node, 0))
    tiled = [k for n, m in zip(node.ne[::-1], a.shape, strict=True) for k in (m // n, n)]
    write(node, a.reshape(tiled).sum(axis=(0, 2, 4, 6)))


REFERENCE_OPS = {Op.REPEAT: (refuse, repeat), Op.REPEAT_BACK: (refuse_back, repeat_back)}
