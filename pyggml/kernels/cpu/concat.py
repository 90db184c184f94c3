"""CONCAT: each source is moved to its part of the result. Knows nothing of what the bytes mean.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_concat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import SIZES, GGMLType
from pyggml.kernels.cpu.copy import move
from pyggml.kernels.cpu.layout import refuse_types
from pyggml.kernels.cpu.windows import window

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types(GGMLType, node, *node.src)


def lower(builder: Builder, node: Tensor) -> None:
    a, b = node.src
    assert a is not None and b is not None
    dim = node.param_i32(0)
    length = a.ne[dim] // (SIZES[a.type].block_size if dim == 0 else 1)
    for part, offset in ((a, 0), (b, length * node.nb[dim])):
        if part.nelements:
            move(builder, window(node, part.ne, node.nb, offset), part)
