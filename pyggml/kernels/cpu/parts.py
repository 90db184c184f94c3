"""SET, ACC: the whole is copied, then a part of it written or added to. Knows nothing of what the bytes mean.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_set_f32, ggml_compute_forward_acc_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.copy import move
from pyggml.kernels.cpu.layout import layout_of, refuse_types
from pyggml.kernels.cpu.windows import window
from pyggml.ops import Op
from pyggml.ops.overlap import reaches_into_itself
from pyggml.ops.parts import part_strides
from pyggml.tensor import Tensor

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder


def why_not(node: Tensor) -> str | None:
    b = node.src[1]
    assert b is not None
    reason = refuse_types([GGMLType.F32] if node.op == Op.ACC else GGMLType, node, *node.src)
    if reason is None and reaches_into_itself(Tensor(b.type, b.ne, part_strides(node)[0])):
        return "destination elements overlap"
    return reason


def lower(builder: Builder, node: Tensor) -> None:
    a, b = node.src
    assert a is not None and b is not None
    if node.data != a.data:
        move(builder, node, a)
    if not b.nelements:
        return
    nb, offset = part_strides(node)
    part = window(node, b.ne, nb, offset)
    if node.op == Op.SET:
        move(builder, part, b)
    else:
        layouts = (layout_of(part), layout_of(part), layout_of(b))
        builder.step(Spec("elementwise", "binary", ("add", "row", *layouts)), part, (part, b))
