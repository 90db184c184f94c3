"""ADD SUB MUL DIV ADD1, element by element.

Source: ggml-cpu/binary-ops.cpp.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyggml.backend.reference.values import FLOATS, Values, not_among, read, source, write
from pyggml.ops import Op
from pyggml.quants import QUANTS, quantizable
from pyggml.tensor import Tensor

BINARY: dict[Op, Callable[[Values, Values], Values]] = {
    Op.ADD: np.add,
    Op.SUB: np.subtract,
    Op.MUL: np.multiply,
    Op.DIV: np.divide,
    Op.ADD1: np.add,
}


def refuse(node: Tensor) -> str | None:
    return not_among(FLOATS, node, *(s for s in node.src if s is not None))


def refuse_sum(node: Tensor) -> str | None:
    return not_among(quantizable(), node) or not_among(QUANTS, source(node, 0)) or not_among(FLOATS, source(node, 1))


def binary(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    repeated = np.tile(b, [n // m for n, m in zip(a.shape, b.shape, strict=True)])
    write(node, BINARY[Op(node.op)](a, repeated))


REFERENCE_OPS = {
    **dict.fromkeys(BINARY, (refuse, binary)),
    Op.ADD: (refuse_sum, binary),
    Op.ADD1: (refuse_sum, binary),
}
