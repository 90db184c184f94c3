"""The arguments that all kernels of attention share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.kernels.cuda.layout import option, source
from pyggml.kernels.cuda.soft_max import slopes

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


class Operands:
    """What every kernel of attention gets, as arguments: result, queries, keys, values, mask, and numbers."""

    def __init__(self, builder: Builder, node: Tensor) -> None:
        q, k, v = (source(node, i) for i in range(3))
        mask, sinks = option(node, 3), option(node, 4)
        scale, max_bias, softcap = (node.param_f32(i) for i in range(3))
        self.q, self.k, self.v, self.mask, self.sinks = q, k, v, mask, sinks
        self.tensors = (
            node.data, *node.nb, q.data, *q.nb, k.data, *k.nb, v.data, *v.nb,
            *((mask.data, *mask.nb[:4]) if mask is not None else (0, 0, 0, 0, 0)),
        )  # fmt: skip
        self.shapes = (
            q.ne[0], v.ne[0], k.ne[1], q.ne[1], q.ne[2], q.ne[2] // k.ne[2], q.ne[2] // v.ne[2],
            *(mask.ne[2:] if mask is not None else (1, 1)),
        )  # fmt: skip
        self.numbers = (
            slopes(builder, q.ne[2], max_bias), 0 if sinks is None else sinks.data, 0 if sinks is None else sinks.nb[0],
            scale / softcap if softcap != 0.0 else scale, softcap,
        )  # fmt: skip
