"""The arguments that all kernels of attention share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Place, place
from pyggml.kernels.cuda.layout import option, source
from pyggml.kernels.cuda.soft_max import slopes
from pyggml.kernels.cuda.spec import f32, i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor


class Shared(NamedTuple):
    """Result, queries, keys, values, mask; shapes; numbers. ratio_k, ratio_v: heads of q that share one of k, of v."""

    y: Place
    q: Place
    k: Place
    v: Place
    mask: Place
    key_size: i32
    value_size: i32
    n_kv: i32
    n_tokens: i32
    n_head: i32
    ratio_k: i32
    ratio_v: i32
    mask_heads: i32
    mask_batches: i32
    slopes: i64
    sinks: i64
    sink_step: i64
    scale: f32
    softcap: f32


class Operands:
    """The operands of a node, and what every kernel of attention gets as arguments."""

    def __init__(self, builder: Builder, node: Tensor) -> None:
        q, k, v = (source(node, i) for i in range(3))
        mask, sinks = option(node, 3), option(node, 4)
        scale, max_bias, softcap = (node.param_f32(i) for i in range(3))
        self.q, self.k, self.v, self.mask, self.sinks = q, k, v, mask, sinks
        self.args = Shared(
            y=place(node), q=place(q), k=place(k), v=place(v), mask=place(mask), key_size=q.ne[0], value_size=v.ne[0],
            n_kv=k.ne[1], n_tokens=q.ne[1], n_head=q.ne[2], ratio_k=q.ne[2] // k.ne[2], ratio_v=q.ne[2] // v.ne[2],
            mask_heads=1 if mask is None else mask.ne[2], mask_batches=1 if mask is None else mask.ne[3],
            slopes=slopes(builder, q.ne[2], max_bias), sinks=0 if sinks is None else sinks.data,
            sink_step=0 if sinks is None else sinks.nb[0], scale=scale / softcap if softcap != 0.0 else scale,
            softcap=softcap,
        )  # fmt: skip
