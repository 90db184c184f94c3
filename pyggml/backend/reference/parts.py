"""SET, ACC: a part of a tensor replaced, or added to.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_set_f32, ggml_compute_forward_acc_f32.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pyggml.backend.host import view_of
from pyggml.backend.reference.values import not_among, source
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.ops.parts import part_strides
from pyggml.tensor import Tensor


def refuse_set(node: Tensor) -> str | None:
    return None


def refuse_acc(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], node)


def part_of(node: Tensor) -> NDArray[Any]:
    """The part, in place, once the rest is a copy of the whole."""
    a, b = source(node, 0), source(node, 1)
    nb, offset = part_strides(node)
    if node.data != a.data:
        view_of(node)[...] = view_of(a)
    part = Tensor(node.type, b.ne, nb)
    part.buffer, part.data = node.buffer, node.data + offset
    return view_of(part)


def set_part(node: Tensor) -> None:
    part_of(node)[...] = view_of(source(node, 1))


def acc(node: Tensor) -> None:
    part = part_of(node)
    part[...] = part + view_of(source(node, 1))


REFERENCE_OPS = {Op.SET: (refuse_set, set_part), Op.ACC: (refuse_acc, acc)}
