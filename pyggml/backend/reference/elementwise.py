"""ADD SUB MUL DIV ADD1, SCALE and the 22 functions of UNARY, element by element. Knows nothing of rows or types' bytes.

Sources: ggml-cpu/binary-ops.cpp, unary-ops.cpp, vec.h; ops.cpp: ggml_compute_forward_scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pyggml.backend.reference.values import FLOATS, Values, not_among, read, source, write
from pyggml.ops import Op, UnaryOp
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor

BINARY: dict[Op, Callable[[Values, Values], Values]] = {
    Op.ADD: np.add,
    Op.SUB: np.subtract,
    Op.MUL: np.multiply,
    Op.DIV: np.divide,
    Op.ADD1: np.add,
}

erf = np.vectorize(math.erf, otypes=[np.float64])


def refuse(node: Tensor) -> str | None:
    return not_among(FLOATS, node, *(s for s in node.src if s is not None))


def refuse_sum(node: Tensor) -> str | None:
    return not_among(QUANTS, node, source(node, 0)) or not_among(FLOATS, source(node, 1))


def binary(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    repeated = np.tile(b, [n // m for n, m in zip(a.shape, b.shape, strict=True)])
    write(node, BINARY[Op(node.op)](a, repeated))


def scale(node: Tensor) -> None:
    write(node, read(source(node, 0)) * node.param_f32(0) + node.param_f32(1))


def sigmoid(x: Values) -> Values:
    return 1.0 / (1.0 + np.exp(-x))


def silu(x: Values) -> Values:
    return x / (1.0 + np.exp(-x))


def gelu(x: Values) -> Values:
    """The tanh approximation; exactly 0 from -10 down (vec.h: ggml_vec_gelu_f32)."""
    y = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * x * (1.0 + 0.044715 * x * x)))
    return np.where(x <= -10.0, 0.0, y)


def gelu_quick(x: Values) -> Values:
    return x * sigmoid(1.702 * x)


def gelu_erf(x: Values) -> Values:
    y: Values = 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))
    return y


def hardsigmoid(x: Values) -> Values:
    """fmin and fmax, which drop a NaN: hardsigmoid(NaN) = 0."""
    y: Values = np.fmin(1.0, np.fmax(0.0, (x + 3.0) / 6.0))
    return y


def round_half_away(x: Values) -> Values:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


# A comparison with NaN is false: SGN, STEP and RELU of NaN are 0.
FUNCTIONS: dict[UnaryOp, Callable[[Values], Values]] = {
    UnaryOp.ABS: np.abs,
    UnaryOp.SGN: lambda x: np.where(x > 0, 1.0, np.where(x < 0, -1.0, 0.0)),
    UnaryOp.NEG: np.negative,
    UnaryOp.STEP: lambda x: np.where(x > 0, 1.0, 0.0),
    UnaryOp.TANH: np.tanh,
    UnaryOp.ELU: lambda x: np.where(x > 0, x, np.expm1(x)),
    UnaryOp.RELU: lambda x: np.where(x > 0, x, 0.0),
    UnaryOp.SIGMOID: sigmoid,
    UnaryOp.GELU: gelu,
    UnaryOp.GELU_QUICK: gelu_quick,
    UnaryOp.SILU: silu,
    UnaryOp.HARDSWISH: lambda x: x * hardsigmoid(x),
    UnaryOp.HARDSIGMOID: hardsigmoid,
    UnaryOp.EXP: np.exp,
    UnaryOp.EXPM1: np.expm1,
    UnaryOp.SOFTPLUS: lambda x: np.where(x > 20, x, np.log1p(np.exp(x))),
    UnaryOp.GELU_ERF: gelu_erf,
    UnaryOp.FLOOR: np.floor,
    UnaryOp.CEIL: np.ceil,
    UnaryOp.ROUND: round_half_away,
    UnaryOp.TRUNC: np.trunc,
}


def xielu(x: Values, alpha_n: float, alpha_p: float, beta: float, eps: float) -> Values:
    above = alpha_p * x * x + beta * x
    below = (np.expm1(np.fmin(x, eps)) - x) * alpha_n + beta * x
    return np.where(x > 0, above, below)


def unary(node: Tensor) -> None:
    x, kind = read(source(node, 0)), UnaryOp(node.param_i32(0))
    if kind == UnaryOp.XIELU:
        write(node, xielu(x, *(node.param_f32(i) for i in range(1, 5))))
    else:
        write(node, FUNCTIONS[kind](x))


LAWS = {
    **dict.fromkeys(BINARY, (refuse, binary)),
    Op.ADD: (refuse_sum, binary),
    Op.ADD1: (refuse_sum, binary),
    Op.SCALE: (refuse, scale),
    Op.UNARY: (refuse, unary),
}
