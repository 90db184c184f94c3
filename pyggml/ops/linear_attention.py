"""GATED_LINEAR_ATTN, RWKV_WKV6, RWKV_WKV7: their rules and builders. Not how they are computed.

All take tensors (head size S, heads H, tokens T) of F32 and a state of S x S numbers a head for each sequence; a sequence
has T / sequences tokens, one sequence after the other. Their result holds (S H, T) outputs, then the new states.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, divides, need, rule, sources
from pyggml.tensor import Tensor, pack_params


def _recurrence(op: Op, inputs: Sequence[Tensor], state: Tensor) -> tuple[GGMLType, Shape]:
    first = inputs[0]
    size, heads, tokens, _ = first.ne
    sequences = state.ne[1]
    for t in (*inputs, state):
        need(t.type == GGMLType.F32 and t.is_contiguous, op, "a source is not contiguous F32", t)
    for t in inputs:
        need(t.ne == (size, heads, tokens, 1), op, "shapes differ", first, t)
    need(0 not in first.ne and divides(sequences, tokens), op, f"{sequences} sequences of {tokens} tokens", first)
    need(state.nelements == size * size * heads * sequences, op, "the state has another size", first, state)
    return GGMLType.F32, (size * heads, tokens + size * sequences, 1, 1)


@rule(Op.GATED_LINEAR_ATTN)
def _gated_linear_attn(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    *inputs, state = sources(Op.GATED_LINEAR_ATTN, src, 5)
    return _recurrence(Op.GATED_LINEAR_ATTN, inputs, state)


@rule(Op.RWKV_WKV6)
def _rwkv_wkv6(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.RWKV_WKV6
    k, v, r, bonus, decay, state = sources(op, src, 6)
    need(bonus.type == GGMLType.F32 and bonus.is_contiguous, op, "the bonus is not contiguous F32", bonus)
    need(bonus.nelements == k.ne[0] * k.ne[1], op, "there must be one bonus a channel", k, bonus)
    return _recurrence(op, (k, v, r, decay), state)


@rule(Op.RWKV_WKV7)
def _rwkv_wkv7(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    *inputs, state = sources(Op.RWKV_WKV7, src, 7)
    return _recurrence(Op.RWKV_WKV7, inputs, state)


def gated_linear_attn(
    k: Tensor, v: Tensor, q: Tensor, g: Tensor, state: Tensor, scale: float, name: str = ""
) -> Tensor:
    """For each token: state = state g + k v, output = state^T q scale; g by row of the state."""
    return build(Op.GATED_LINEAR_ATTN, (k, v, q, g, state), pack_params("f", scale), name)


def rwkv_wkv6(k: Tensor, v: Tensor, r: Tensor, bonus: Tensor, decay: Tensor, state: Tensor, name: str = "") -> Tensor:
    """For each token: output = (state + bonus k v)^T r, then state = state decay + k v; bonus and decay by row."""
    return build(Op.RWKV_WKV6, (k, v, r, bonus, decay, state), name=name)


def rwkv_wkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, name: str = ""
) -> Tensor:
    """For each token: state = state w + v k + (state a) b, output = state r; w, k, a, b, r by column of the state."""
    return build(Op.RWKV_WKV7, (r, w, k, v, a, b, state), name=name)
