"""ADD_ID: to each row the row of a table that its number says.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_add_id.
"""

from __future__ import annotations

from pyggml.backend.reference.rows import row_numbers
from pyggml.backend.reference.values import read, source, write
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return None  # the rule of this op says all


def add_id(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))[0, 0]
    write(node, a + b[row_numbers(node, source(node, 2), b.shape[0])])


REFERENCE_OPS = {Op.ADD_ID: (refuse, add_id)}
