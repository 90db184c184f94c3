"""SCALE, UNARY, SQR SQRT LOG SIN COS, CLAMP, LEAKY_RELU: functions of each element.

Sources: ggml-cpu/unary-ops.cpp, vec.h; ops.cpp: ggml_compute_forward_scale, _clamp, _leaky_relu.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pyggml.backend.reference.values import FLOATS, Values, not_among, read, source, write
from pyggml.ops import Op, UnaryOp
from pyggml.tensor import Tensor

erf = np.vectorize(math.erf, otypes=[np.float64])


def refuse(node: Tensor) -> str | None:
    return not_among(FLOATS, node, source(node, 0))


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


# Functions that have an op of their own.
PLAIN: dict[Op, Callable[[Values], Values]] = {
    Op.SQR: np.square,
    Op.SQRT: np.sqrt,
    Op.LOG: np.log,
    Op.SIN: np.sin,
    Op.COS: np.cos,
}


def plain(node: Tensor) -> None:
    write(node, PLAIN[Op(node.op)](read(source(node, 0))))


def clamp(node: Tensor) -> None:
    """MIN, then MAX, by "less than": a NaN becomes the upper bound."""
    x, low, high = read(source(node, 0)), node.param_f32(0), node.param_f32(1)
    y = np.where(x < high, x, high)
    write(node, np.where(y > low, y, low))


def leaky_relu(node: Tensor) -> None:
    x = read(source(node, 0))
    write(node, np.where(x > 0, x, 0.0) + node.param_f32(0) * np.where(x < 0, x, 0.0))


REFERENCE_OPS = {
    Op.SCALE: (refuse, scale),
    Op.UNARY: (refuse, unary),
    **dict.fromkeys(PLAIN, (refuse, plain)),
    Op.CLAMP: (refuse, clamp),
    Op.LEAKY_RELU: (refuse, leaky_relu),
}
