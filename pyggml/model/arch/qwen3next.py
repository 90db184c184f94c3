"""qwen3next: qwen35moe with positions of one axis, and projections of delta nets that lie group by group
(llama.cpp: models/qwen3next.cpp)."""

from collections.abc import Iterator, Mapping
from typing import Any

from pyggml import ops
from pyggml.model.arch.qwen35moe import Block as Base
from pyggml.model.delta_net import DeltaNet
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.linear import Linear
from pyggml.model.module import Weight
from pyggml.tensor import Tensor


class GroupedDeltaNet(DeltaNet):
    """Strengths and steps lie group by group, in older files queries, keys, values and gate too (ssm_in). A group's values
    follow each other, so that its key counts for neighbouring heads."""

    def project(self, hp: Hparams) -> None:
        keys = self.keys
        self.ssm_in = Linear(hp.n_embd, self.n_qkv + keys.d_inner, required=False)
        self.attn_qkv = Linear(hp.n_embd, self.n_qkv)
        self.attn_gate = Linear(hp.n_embd, keys.d_inner)
        self.ssm_ba = Linear(hp.n_embd, 2 * keys.n_head)

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        for matrix in (self.attn_qkv, self.attn_gate):
            matrix.weight.required = self.ssm_in.weight.name not in tensors
        yield from super().wanted(tensors)

    def projected(self, g: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        keys = self.keys
        each = keys.n_head // keys.n_group
        if self.attn_qkv.weight.there and self.attn_gate.weight.there:
            qkv, z = g.linear(self.attn_qkv, x), g.linear(self.attn_gate, x)
        else:
            head = keys.d_state
            q, k, v, z = _split(keys.n_group, g.linear(self.ssm_in, x), head, head, head * each, head * each)
            qkv = ops.concat(ops.concat(q, k, 0), v, 0)
        beta, alpha = _split(keys.n_group, g.linear(self.ssm_ba, x), each, each)
        return qkv, z, beta, alpha

    def widened(self, x: Tensor) -> Tensor:
        head, n_group, n_tokens, n_seqs = x.ne
        each = self.keys.n_head // n_group
        if each == 1:
            return x
        wide = ops.repeat(ops.reshape(x, head, 1, n_group, n_tokens * n_seqs), head, each, n_group, n_tokens * n_seqs)
        return ops.reshape(wide, head, each * n_group, n_tokens, n_seqs)


def _split(n_group: int, x: Tensor, *sizes: int) -> list[Tensor]:
    """(n_group * all sizes, n_tokens), group by group -> for each size (n_group * size, n_tokens)."""
    total, n_tokens, at, found = sum(sizes), x.ne[1], 0, []
    for size in sizes:
        part = ops.view(x, (size, n_group, n_tokens), (total * x.nb[0], x.nb[1]), at)
        found.append(ops.cont(part, size * n_group, n_tokens))
        at += size * x.nb[0]
    return found


class Block(Base):
    delta_net = GroupedDeltaNet
    rope_mode = ops.ROPE_NEOX


class Model(CausalLM):
    block = Block
