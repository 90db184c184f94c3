"""SSM_CONV, SSM_SCAN: their rules and builders. Not how they are computed."""

from __future__ import annotations

from pyggml.dtypes import SIZES, GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, divides, need, rule, sources
from pyggml.tensor import Tensor, pack_params


@rule(Op.SSM_CONV)
def _ssm_conv(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.SSM_CONV
    x, weights = sources(op, src, 2)
    need(x.ne[3] == 1 and weights.ne[2] == weights.ne[3] == 1, op, "too many dimensions", x, weights)
    need(x.ne[1] == weights.ne[1], op, "channels differ", x, weights)
    n_tokens = x.ne[0] - weights.ne[0] + 1
    need(n_tokens >= 0, op, "fewer columns than weights", x, weights)
    size = SIZES[x.type].type_size
    need(x.nb[0] == size and x.nb[1] == x.ne[0] * size, op, "channels are not contiguous", x)
    return GGMLType.F32, (x.ne[1], n_tokens, x.ne[2], 1)


def ssm_conv(x: Tensor, weights: Tensor, name: str = "") -> Tensor:
    """x (d_conv - 1 + n_tokens, d_inner, n_seqs), weights (d_conv, d_inner) -> (d_inner, n_tokens, n_seqs): each channel
    met with its own weights, from each token's window on."""
    return build(Op.SSM_CONV, (x, weights), name=name)


@rule(Op.SSM_SCAN)
def _ssm_scan(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.SSM_SCAN
    s, x, dt, a, b, c, ids = sources(op, src, 7)
    slots = node.param_i32(0)
    d_state, (head_dim, n_head, n_tokens, n_seqs) = s.ne[0], x.ne
    need(slots >= 1, op, f"{slots} states a sequence: must be at least 1", s)
    need(
        s.is_contiguous and dt.is_contiguous and a.is_contiguous,
        op,
        "states, steps or decay are not contiguous",
        s,
        dt,
        a,
    )
    for t in (x, b, c):
        size = SIZES[t.type].type_size
        need(t.nb[0] == size and t.nb[1] == t.ne[0] * size, op, "heads or groups are not contiguous", t)
    need(dt.ne == (n_head, n_tokens, n_seqs, 1), op, "there must be one step for each head and token", dt, x)
    need(s.ne[1:3] == (head_dim, n_head), op, "the states have another number or size of heads", s, x)
    need(b.ne == c.ne and b.ne[0] == d_state and b.ne[2:] == x.ne[2:], op, "B and C do not fit", b, c, s, x)
    need(divides(b.ne[1], n_head), op, "the number of groups does not divide that of heads", b, x)
    need(
        ids.type == GGMLType.I32 and ids.ne == (n_seqs, 1, 1, 1), op, "there must be one I32 for each sequence", ids, x
    )
    need(a.ne in ((1, n_head, 1, 1), (d_state, n_head, 1, 1)), op, "the decay has another number of heads", a, s)
    need(a.ne[0] == 1 or slots == 1, op, "several states a sequence need one decay a head", a)
    return GGMLType.F32, (x.nelements + slots * d_state * head_dim * n_head * n_seqs, 1, 1, 1)


def ssm_scan(
    s: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, ids: Tensor, slots: int = 1, name: str = ""
) -> Tensor:
    """The scan of Mamba: s = s * e^(a softplus(dt)) + b * x softplus(dt), y = s . c, token after token.

    s (d_state, head_dim, n_head, any) with sequence i beginning at ids[i], x (head_dim, n_head, n_tokens, n_seqs), dt
    (n_head, n_tokens, n_seqs), a (1 or d_state, n_head), b and c (d_state, n_group, n_tokens, n_seqs). -> one row of
    F32: y as x is, then `slots` times the states (d_state, head_dim, n_head, n_seqs): after the last token, after the
    one before it ...; what there are no tokens for is not written.
    """
    return build(Op.SSM_SCAN, (s, x, dt, a, b, c, ids), pack_params("i", slots), name)
