"""DSV4_HC_COMB, DSV4_HC_PRE, DSV4_HC_POST, of hyper-connections: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, option, rule, sources
from pyggml.tensor import Tensor, pack_params

STREAMS = 4
"""Of DSV4_HC_COMB; the others take any number."""
MAX_ROUNDS = 1024
"""Models have about 20; a parameter of a graph that somebody sent must not take minutes for one token."""


def _need_f32(op: Op, *tensors: Tensor) -> None:
    need(all(t.type == GGMLType.F32 for t in tensors), op, "a source is not F32", *tensors)


@rule(Op.DSV4_HC_COMB)
def _dsv4_hc_comb(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.DSV4_HC_COMB
    mixes, scale, base = sources(op, src, 3)
    n, n_iter = (2 + STREAMS) * STREAMS, node.param_i32(1)
    _need_f32(op, mixes, scale, base)
    need(mixes.ne == (n, mixes.ne[1], 1, 1), op, f"there must be {n} numbers a token", mixes)
    need(scale.ne[0] >= 3 and scale.ne[1:] == (1, 1, 1), op, "there must be three factors", scale)
    need(base.ne == (n, 1, 1, 1), op, f"there must be {n} numbers to add", base)
    need(0 < n_iter <= MAX_ROUNDS, op, f"{n_iter} rounds, must be 1 to {MAX_ROUNDS}", mixes)
    return GGMLType.F32, (STREAMS, STREAMS, mixes.ne[1], 1)


def dsv4_hc_comb(mixes: Tensor, scale: Tensor, base: Tensor, eps: float, n_iter: int, name: str = "") -> Tensor:
    """A matrix a token whose columns, and nearly its rows, add up to 1: mixes (24, n_tokens), of which the last 16 count,
    times scale[2] + base (24); softmax of each row, + eps; then `n_iter` times columns divided by their sum + eps, and
    between them rows (Sinkhorn; ggml.c: ggml_dsv4_hc_comb). -> F32 (4 results, 4 sources, n_tokens)."""
    return build(Op.DSV4_HC_COMB, (mixes, scale, base), pack_params("fi", eps, n_iter), name)


@rule(Op.DSV4_HC_PRE)
def _dsv4_hc_pre(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.DSV4_HC_PRE
    x, weights = sources(op, src, 2)
    n_embd, streams, n_tokens, _ = x.ne
    _need_f32(op, x, weights)
    need(x.ne[3] == 1, op, "the source has a fourth dimension", x)
    fits = weights.ne == (x.ne if node.param_i32(1) else (streams, n_tokens, 1, 1))
    need(fits, op, "there must be one weight a stream, or where they are gates one an element", x, weights)
    return GGMLType.F32, (n_embd, n_tokens, 1, 1)


def dsv4_hc_pre(x: Tensor, weights: Tensor, name: str = "") -> Tensor:
    """x (n_embd, streams, n_tokens), weights (streams, n_tokens) -> F32 (n_embd, n_tokens): the weighted sum of the streams."""
    return build(Op.DSV4_HC_PRE, (x, weights), pack_params("fi", 1.0, 0), name)


def dsv4_hc_pre_gated(x: Tensor, gate: Tensor, scale: float, name: str = "") -> Tensor:
    """scale * the sum over streams of x * sigmoid(gate), both (n_embd, streams, n_tokens) -> F32 (n_embd, n_tokens)."""
    return build(Op.DSV4_HC_PRE, (x, gate), pack_params("fi", scale, 1), name)


@rule(Op.DSV4_HC_POST)
def _dsv4_hc_post(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.DSV4_HC_POST
    x, residual, post = sources(op, src, 3, 1)
    comb = option(src, 3)
    n_embd, n_tokens, streams = *x.ne[:2], residual.ne[1]
    _need_f32(op, x, residual, post)
    need(x.ne[2:] == (1, 1), op, "what is added has more than two dimensions", x)
    need(residual.ne == (n_embd, streams, n_tokens, 1), op, "the streams do not fit what is added", residual, x)
    need(post.ne == (streams, n_tokens, 1, 1), op, "there must be one weight a stream", post, residual)
    if comb is not None:
        _need_f32(op, comb)
        fits = comb.ne == (streams, streams, n_tokens, 1)
        need(fits, op, "there must be one weight a result and stream", comb, residual)
    return GGMLType.F32, (n_embd, streams, n_tokens, 1)


def dsv4_hc_post(x: Tensor, residual: Tensor, post: Tensor, comb: Tensor | None = None, name: str = "") -> Tensor:
    """x (n_embd, n_tokens) times post (streams, n_tokens), and the streams `residual` (n_embd, streams, n_tokens) mixed by comb
    (results, streams, n_tokens), or without it as they are -> F32 (n_embd, streams, n_tokens)."""
    return build(Op.DSV4_HC_POST, (x, residual, post, comb), name=name)
