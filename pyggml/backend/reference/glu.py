"""GLU: a function of one half times the other half.

Sources: ggml-cpu/vec.h; ops.cpp: ggml_compute_forward_glu and the seven below it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyggml.backend.reference.unary import gelu, gelu_erf, gelu_quick, sigmoid, silu
from pyggml.backend.reference.values import FLOATS, Values, not_among, option, read, source, write
from pyggml.ops import GluOp, Op
from pyggml.tensor import Tensor

# (half that goes through the function, other half, alpha, limit) -> result
FUNCTIONS: dict[GluOp, Callable[[Values, Values, float, float], Values]] = {
    GluOp.REGLU: lambda x, g, alpha, limit: np.where(x > 0, x * g, 0.0),
    GluOp.GEGLU: lambda x, g, alpha, limit: gelu(x) * g,
    GluOp.SWIGLU: lambda x, g, alpha, limit: silu(x) * g,
    GluOp.SWIGLU_OAI: lambda x, g, alpha, limit: swiglu_oai(np.minimum(x, limit), np.clip(g, -limit, limit), alpha),
    GluOp.GEGLU_ERF: lambda x, g, alpha, limit: gelu_erf(x) * g,
    GluOp.GEGLU_QUICK: lambda x, g, alpha, limit: gelu_quick(x) * g,
    GluOp.SWIGLU_CLAMP: lambda x, g, alpha, limit: silu(np.minimum(x, limit)) * np.clip(g, -limit, limit),
}


def swiglu_oai(x: Values, g: Values, alpha: float) -> Values:
    return x * sigmoid(alpha * x) * (g + 1.0)


def refuse(node: Tensor) -> str | None:
    return not_among(FLOATS, node, source(node, 0))


def glu(node: Tensor) -> None:
    kind, swapped = GluOp(node.param_i32(0)), node.param_i32(1) != 0
    x, gate = read(source(node, 0)), option(node, 1)
    if gate is not None:
        g = read(gate)  # `swapped` is about halves of one tensor
    else:
        half = node.ne[0]  # the last element of an odd row is in neither half
        first, second = x[..., :half], x[..., half : 2 * half]
        x, g = (second, first) if swapped else (first, second)
    write(node, FUNCTIONS[kind](x, g, node.param_f32(2), node.param_f32(3)))


REFERENCE_OPS = {Op.GLU: (refuse, glu)}
