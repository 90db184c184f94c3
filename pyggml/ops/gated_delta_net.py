"""GATED_DELTA_NET: its rule and builder. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, dense_rows, divides, need, rule, sources
from pyggml.tensor import Tensor, pack_params


@rule(Op.GATED_DELTA_NET)
def _gated_delta_net(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.GATED_DELTA_NET
    q, k, v, g, beta, state = sources(op, src, 6)
    slots = node.param_i32(0)
    head, n_head, n_tokens, n_seqs = v.ne
    need(all(t.type == GGMLType.F32 for t in (q, k, v, g, beta, state)), op, "a source is not F32", q, k, v, g)
    need(all(map(dense_rows, (q, k, v))), op, "rows are not contiguous", q, k, v)
    need(all(t.is_contiguous for t in (g, beta, state)), op, "gates or states are not contiguous", g, beta, state)
    for t in (q, k):
        need(t.ne[0] == head and t.ne[1] > 0 and t.ne[2] == n_tokens, op, "q or k does not fit v", t, v)
        need(divides(t.ne[3], n_seqs), op, "the number of sequences of q or k does not divide that of v", t, v)
    need(g.ne in ((1, *v.ne[1:]), v.ne), op, "there must be one gate a head, or one an element", g, v)
    need(beta.ne == (1, *v.ne[1:]), op, "there must be one beta a head", beta, v)
    need(state.ne == (head, head, n_head, n_seqs), op, "the states have another number or size of heads", state, v)
    need(slots >= 1, op, f"{slots} states a sequence: must be at least 1", state)
    return GGMLType.F32, (head * n_head, n_tokens * n_seqs + slots * head * n_seqs, 1, 1)


def gated_delta_net(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, slots: int = 1, name: str = ""
) -> Tensor:
    """S = S * e^g; S += k (v - S k) * beta; y = S q / sqrt(head), token after token, for each head.

    v (head, n_head, n_tokens, n_seqs); q and k the same, or fewer heads that come again and again, or fewer sequences;
    g (1 or head, n_head, n_tokens, n_seqs), beta (1, ...), state (head, head, n_head, n_seqs), where row j belongs to
    element j of v. -> F32 (head * n_head, ...): y, a row for each token of each sequence, then `slots` times the states:
    after the last token, after the one before it ...; what there are no tokens for is not written.
    """
    return build(Op.GATED_DELTA_NET, (q, k, v, g, beta, state), pack_params("i", slots), name)
